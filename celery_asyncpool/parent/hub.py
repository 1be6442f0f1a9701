"""The hub in which the supervisor lives.

Celery runs a kombu hub where the broker's transport has one; the supervisor
then is one more user of it. Where the transport has none (filesystem, SQL,
memory), it gets a kombu hub of its own, in a thread.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from celery.utils.log import get_logger
from kombu.asynchronous import Hub

__all__ = ["HubThread", "Waker"]

logger = get_logger(__name__)


class Waker:
    """Lets another thread interrupt a hub's poll (kombu has this since 5.7)."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        """The descriptor that is readable after :meth:`wake`."""
        return self._reader

    def wake(self) -> None:
        """Make the hub's poll return; safe from any thread."""
        try:
            os.write(self._writer, b"\0")
        except BlockingIOError:
            return  # full of wake-ups that are still to be seen

    def clear(self) -> None:
        """Forget the wake-ups so far."""
        try:
            os.read(self._reader, 4096)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self._reader)
        os.close(self._writer)


class HubThread:
    """A kombu hub in a daemon thread; calls are made there in order.

    Arguments:
        on_crash: called in the thread with the exception that ended it.
    """

    def __init__(self, on_crash: Callable[[BaseException], None]) -> None:
        self.hub = Hub()
        self._on_crash = on_crash
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._waker = Waker()
        self._stopping = False
        self._was_started = False
        self._thread = threading.Thread(target=self._run, name="asyncpool-hub", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.hub.add_reader(self._waker.fileno(), self._waker.clear)
        self._thread.start()
        self._was_started = True

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Call *function* in the thread, soon; safe from any thread."""
        self._calls.append((function, args))
        self._waker.wake()

    @property
    def has_crashed(self) -> bool:
        """Whether the thread was started and has ended by itself: no call is made any more."""
        return self._was_started and not self._thread.is_alive() and not self._stopping

    def stop(self) -> None:
        """Make the calls that were asked for, then end the thread."""
        if self._thread.is_alive():
            self._stopping = True
            self._waker.wake()
            self._thread.join()
        self.hub.close()
        self._waker.close()

    def _run(self) -> None:
        try:
            while not self._stopping or self._calls:
                self._make_calls()
                self.hub.run_once()
        except BaseException as exc:
            logger.critical("the pool's hub thread has ended: %r", exc, exc_info=True)
            self._on_crash(exc)

    def _make_calls(self) -> None:
        while self._calls:
            function, args = self._calls.popleft()
            function(*args)
