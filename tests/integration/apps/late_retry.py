"""A result backend that is slow at one thing: it stores RETRY two seconds late."""

import time

from celery import states
from celery.backends.redis import RedisBackend


class LateRetryBackend(RedisBackend):
    """Has looked at what is stored, and then loses two seconds before it stores RETRY."""

    def _set_with_state(self, key, value, state):
        if state == states.RETRY:
            time.sleep(2)
        return super()._set_with_state(key, value, state)
