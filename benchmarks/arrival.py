"""When results arrive in Redis, as its own notifications tell: the same for every library."""

from __future__ import annotations

import threading
import time
from typing import Any

import redis

__all__ = ["ResultTimes"]


#: Redis' letters for the commands that store a result.
CLASSES = {"set": "$", "lpush": "l"}


class ResultTimes:
    """Notes, in a thread, when each key is written; use it as a context manager.

    Arguments:
        url: of the Redis and its database.
        event: the command that writes: ``"set"`` or ``"lpush"``.
    """

    def __init__(self, url: str, event: str = "set") -> None:
        self._class = CLASSES[event]
        self._redis = redis.Redis.from_url(url)
        database = self._redis.connection_pool.connection_kwargs.get("db", 0)
        self._channel = f"__keyevent@{database}__:{event}"
        self.times: dict[str, float] = {}
        self._is_over = False
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> ResultTimes:
        self._redis.config_set("notify-keyspace-events", f"E{self._class}")
        self._pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
        self._pubsub.subscribe(self._channel)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over = True
        self._thread.join()
        self._pubsub.close()
        self._redis.config_set("notify-keyspace-events", "")
        self._redis.close()

    def _listen(self) -> None:
        while not self._is_over:
            message: Any = self._pubsub.get_message(timeout=0.1)
            if message is not None:
                self.times.setdefault(message["data"].decode(), time.monotonic())
