"""Plain ``def`` bodies: a bounded number of threads, so that none blocks the loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from .trace import call_in_thread, can_settle

__all__ = ["BodyThreads", "give_loops_to_threads"]


class BodyThreads:
    """The threads in which the jobs of plain ``def`` tasks are traced.

    Arguments:
        limit: how many run at once (``asyncpool_threads``); more jobs wait.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._jobs = 0
        self._executor = ThreadPoolExecutor(limit, thread_name_prefix="asyncpool-def")

    def __repr__(self) -> str:
        return f"<BodyThreads {self.in_use}/{self.limit}>"

    @property
    def in_use(self) -> int:
        """Threads that run a body right now; further jobs wait for one."""
        return min(self._jobs, self.limit)

    async def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call *function* in a thread, in a copy of the caller's context."""
        context = copy_context()
        self._jobs += 1
        try:
            return await asyncio.wrap_future(
                self._executor.submit(context.run, call_in_thread, function, *args, **kwargs)
            )
        finally:
            self._jobs -= 1

    def shutdown(self) -> None:
        """End the idle threads; one that runs a body ends after it."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def give_loops_to_threads() -> None:
    """Let ``asyncio.get_event_loop()`` of a ``def`` body make a loop, as in a main thread.

    On prefork a body runs in the main thread, where asyncio makes one for who asks
    (before Python 3.14, which makes none anywhere).
    """
    if sys.version_info < (3, 14):
        policy: Any = asyncio.get_event_loop_policy()
        policy.get_event_loop = _LoopOfThread(policy)


class _LoopOfThread:
    """The method of that name of *policy*, for the pool's threads too."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self._get = policy.get_event_loop

    def __call__(self) -> asyncio.AbstractEventLoop:
        try:
            loop: asyncio.AbstractEventLoop = self._get()
        except RuntimeError:
            if not can_settle():
                raise
            loop = self._policy.new_event_loop()
            self._policy.set_event_loop(loop)
        return loop
