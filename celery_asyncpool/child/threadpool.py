"""Threads for an event loop: what it gives them to call, and what comes back.

Leaner than ``concurrent.futures``, whose locks and chained futures cost more
than a no-op task: a call goes over in one queue, and all outcomes that are
there when the loop gets to run come back with one wake-up of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any

__all__ = ["Outcome", "ThreadPool"]


class Outcome:
    """What a call has returned or raised."""

    __slots__ = ("_error", "_value")

    def __init__(self, value: Any, error: BaseException | None) -> None:
        self._value = value
        self._error = error

    def get(self) -> Any:
        """Return what the call returned, or raise what it raised; once."""
        if self._error is None:
            return self._value
        try:
            raise self._error
        finally:
            # The traceback refers to this frame, which refers to the error.
            self._error = None
            del self


class ThreadPool:
    """At most *limit* threads, started when they are needed.

    To be used from one event loop's thread only.
    """

    def __init__(self, limit: int, name: str) -> None:
        self.limit = limit
        self.name = name
        self._threads: list[Thread] = []
        self._calls: SimpleQueue[tuple[asyncio.Future[Outcome], Callable[[], Any]] | None]
        self._calls = SimpleQueue()
        #: Calls that have not come back; more than threads: start another.
        self._pending = 0
        self._outcomes: deque[tuple[asyncio.Future[Outcome], Outcome]] = deque()
        self._wake_up_sent = False

    def __repr__(self) -> str:
        return f"<ThreadPool {self.name} {self._pending} calls, {len(self._threads)} threads>"

    def submit(self, call: Callable[[], Any]) -> asyncio.Future[Outcome]:
        """Make *call* in a thread; return the future of its outcome.

        A cancelled future's call is not made, unless it has begun.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._calls.put((future, call))
        self._pending += 1
        if self._pending > len(self._threads) < self.limit:
            thread = Thread(
                target=self._work, name=f"{self.name}_{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return future

    def stop(self) -> None:
        """Wait until the calls so far have been made, and end the threads."""
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _work(self) -> None:
        """In a thread: make calls until there is None."""
        while (item := self._calls.get()) is not None:
            future, call = item
            outcome = Outcome(None, None)
            if not future.cancelled():
                try:
                    outcome = Outcome(call(), None)
                except BaseException as exc:
                    outcome = Outcome(None, exc)
            self._outcomes.append((future, outcome))
            # The loop clears the mark before it looks at the outcomes, so one
            # that is added while the mark is set is still seen.
            if not self._wake_up_sent:
                self._wake_up_sent = True
                try:
                    future.get_loop().call_soon_threadsafe(self._deliver)
                except RuntimeError:
                    return  # the loop has been closed: nobody waits any more
            del item, future, call, outcome  # an idle thread keeps no job alive

    def _deliver(self) -> None:
        """On the loop: give the outcomes to those who wait."""
        self._wake_up_sent = False
        while self._outcomes:
            future, outcome = self._outcomes.popleft()
            self._pending -= 1
            if not future.cancelled():
                future.set_result(outcome)
