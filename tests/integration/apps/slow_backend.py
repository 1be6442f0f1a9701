"""A result backend that blocks for 200 ms a write, and says in which thread."""

import threading
import time

from celery.backends.redis import RedisBackend

from .recording import record

WRITE_SECONDS = 0.2


class SlowBackend(RedisBackend):
    """Redis behind a slow line."""

    def _set(self, key, value, *more):
        record("write", main=threading.current_thread() is threading.main_thread())
        time.sleep(WRITE_SECONDS)
        return super()._set(key, value, *more)
