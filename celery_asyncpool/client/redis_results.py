"""Redis results: one pub/sub connection, subscribed to what somebody waits for.

Celery publishes each result under the key where it stores it. A result that was
stored before Redis took our subscription is not published again, so each key is
read when its subscription is confirmed. After a cut all is subscribed to, and
read, again.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from typing import Any

from celery.utils.log import get_logger
from kombu.utils.encoding import bytes_to_str

from .listeners import IDLE, Heard, Listener, is_final

__all__ = ["RedisListener"]

logger = get_logger(__name__)

#: Keys in one command.
CHUNK = 500

#: Seconds without a word from Redis after which we ask, and then give up.
SILENCE = 15.0

#: Attempts to connect again, after which those who wait are told.
ATTEMPTS = 20

#: Longest pause between two of them, in seconds.
LONGEST_PAUSE = 1.0


class RedisListener(Listener):
    """Subscribes to the keys of the tasks that somebody waits for."""

    def __init__(self, key: Any, app: Any, backend: Any) -> None:
        super().__init__(key, app, backend)
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._task_ids: dict[str, str] = {}
        self._failures = 0

    def wake(self) -> None:
        try:
            self._wake_write.send(b".")
        except BlockingIOError:
            pass  # enough of them are there

    def run(self) -> None:
        backend = self.backend()
        while not self.may_end_now():
            try:
                self._serve(backend)
            except (*backend.connection_errors, OSError) as exc:
                self._on_lost(exc)

    def may_end_now(self) -> bool:
        """Whether the thread ends; its sockets are then closed."""
        if (self.stopping or not self.waited_for()) and self.may_end():
            self._wake_read.close()
            self._wake_write.close()
            return True
        return False

    def _serve(self, backend: Any) -> None:
        """Hear of results on one connection, until nobody has waited for a while."""
        self.take_changes()
        subscription = _Subscription(backend)
        try:
            self._subscribe(subscription, self.waited_for())
            idle_since = time.monotonic()
            while not self.stopping:
                self._hear(subscription)
                self._apply_changes(subscription)
                if self._waiters:
                    idle_since = time.monotonic()
                elif time.monotonic() - idle_since > IDLE:
                    return
                subscription.wait(self._wake_read)
        finally:
            subscription.close()

    def _apply_changes(self, subscription: _Subscription) -> None:
        wanted, unwanted = self.take_changes()
        self._subscribe(subscription, wanted)
        keys = [subscription.key(task_id) for task_id in unwanted]
        subscription.unsubscribe([key for key in keys if self._task_ids.pop(key, None)])

    def _subscribe(self, subscription: _Subscription, task_ids: list[str]) -> None:
        keys = {subscription.key(task_id): task_id for task_id in task_ids}
        self._task_ids.update(keys)
        subscription.subscribe(list(keys))

    def _hear(self, subscription: _Subscription) -> None:
        confirmed: list[str] = []
        heard: dict[str, Heard] = {}
        for kind, key, data in subscription.messages():
            if kind == "subscribe":
                confirmed.append(key)
            elif kind == "message":
                self._add(heard, key, data, subscription)
        for key, data in subscription.read(confirmed):
            self._add(heard, key, data, subscription)
        if confirmed or heard:
            self._failures = 0
        if heard:
            self.deliver(heard)

    def _add(
        self, heard: dict[str, Heard], key: str, data: Any, subscription: _Subscription
    ) -> None:
        task_id = self._task_ids.get(key)
        if task_id is None or data is None:
            return
        try:
            meta: dict[str, Any] = subscription.backend.decode_result(data)
        except Exception as exc:
            heard[task_id] = exc
        else:
            if is_final(meta):
                heard[task_id] = meta

    def _on_lost(self, exc: BaseException) -> None:
        self._failures += 1
        if self._failures == 1:
            logger.warning("connection for results lost (%s); connecting again", exc)
        if self._failures > ATTEMPTS:
            self.fail_all(exc)
        self._task_ids.clear()
        pause = min(0.05 * 2**self._failures, LONGEST_PAUSE)
        if not self.stopping:
            time.sleep(pause)


class _Subscription:
    """One pub/sub connection of the *backend*, and its ordinary client."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self._pubsub = backend.client.pubsub()
        self._heard_at = time.monotonic()
        self._asked = False

    def key(self, task_id: str) -> str:
        """The key, and channel, of a task's result."""
        return bytes_to_str(self.backend.get_key_for_task(task_id))

    def subscribe(self, keys: list[str]) -> None:
        for chunk in _chunks(keys):
            self._pubsub.subscribe(*chunk)

    def unsubscribe(self, keys: list[str]) -> None:
        for chunk in _chunks(keys):
            self._pubsub.unsubscribe(*chunk)

    def read(self, keys: list[str]) -> Iterator[tuple[str, Any]]:
        """Yield what is stored under *keys*."""
        for chunk in _chunks(keys):
            yield from zip(chunk, self.backend.client.mget(chunk), strict=True)

    def messages(self) -> Iterator[tuple[str, str, Any]]:
        """Yield the kind, channel and data of the messages that are there."""
        if self._pubsub.connection is None:
            return
        while (message := self._pubsub.get_message(timeout=0)) is not None:
            self._heard_at, self._asked = time.monotonic(), False
            yield message["type"], bytes_to_str(message["channel"] or b""), message["data"]

    def wait(self, wake: socket.socket) -> None:
        """Wait for a message, for *wake*, or for a while."""
        self._check_silence()
        poller = select.poll()
        poller.register(wake, select.POLLIN)
        sock = getattr(self._pubsub.connection, "_sock", None)
        if sock is not None:
            poller.register(sock, select.POLLIN)
        poller.poll(1000 if sock is not None else 50)
        try:
            while wake.recv(4096):
                pass
        except BlockingIOError:
            pass

    def _check_silence(self) -> None:
        """Find out whether a silent connection is a dead one."""
        if not self._pubsub.subscribed or time.monotonic() - self._heard_at < SILENCE:
            return
        if self._asked:
            raise OSError(f"Redis has said nothing for {2 * SILENCE:g} s")
        self._pubsub.ping()
        self._heard_at, self._asked = time.monotonic(), True

    def close(self) -> None:
        self._pubsub.close()


def _chunks(keys: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), CHUNK):
        yield keys[start : start + CHUNK]
