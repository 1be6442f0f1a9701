"""A few threads that make blocking calls for any event loop."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["CallThreads", "make_call"]

T = TypeVar("T")

#: Seconds after which a thread without work ends.
IDLE = 10.0


def make_call(future: Future[T], call: Callable[[], T]) -> None:
    """Make *call* and settle *future* with its outcome, unless that was cancelled before."""
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(call())
        except BaseException as exc:
            future.set_exception(exc)
            del future, call  # the traceback refers to this frame


class CallThreads:
    """At most *limit* threads, started when they are needed, gone when they are not.

    May be used from any thread. They are daemons: a call that hangs does not
    hold up the interpreter's exit.
    """

    def __init__(self, limit: int, name: str, idle: float = IDLE) -> None:
        self.limit = limit
        self.name = name
        self.idle = idle
        #: When a call last came back: whether anything moves.
        self.last_return = 0.0
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._threads = 0
        self._waiting = 0

    def __repr__(self) -> str:
        return f"<CallThreads {self.name} {len(self._calls)} calls wait, {self._threads} threads>"

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Make *call* in a thread, unless the future is cancelled before it begins."""
        future: Future[T] = Future()
        with self._changed:
            self._calls.append((future, call))
            if self._waiting < len(self._calls) and self._threads < self.limit:
                threading.Thread(target=self._work, name=self.name, daemon=True).start()
                self._threads += 1
            else:
                self._changed.notify()
        return future

    def _work(self) -> None:
        while (item := self._next()) is not None:
            future, call = item
            make_call(future, call)
            self.last_return = time.monotonic()
            del item, future, call  # an idle thread keeps nothing alive

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        """Wait for a call; None: this thread was idle for long enough."""
        with self._changed:
            self._waiting += 1
            try:
                if self._changed.wait_for(lambda: self._calls, self.idle):
                    return self._calls.popleft()
                self._threads -= 1
                return None
            finally:
                self._waiting -= 1
