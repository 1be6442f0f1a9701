"""A result backend whose writes wait for the file in SLOW_GATE, and say in which thread."""

import os
import threading
import time

from celery.backends.redis import RedisBackend

from .recording import record


class SlowBackend(RedisBackend):
    """Redis behind a line that is down until there is a file."""

    def _set(self, key, value, *more):
        record("write", main=threading.current_thread() is threading.main_thread())
        while not os.path.exists(os.environ["SLOW_GATE"]):
            time.sleep(0.02)
        return super()._set(key, value, *more)
