"""Plain ``def`` bodies: a bounded number of threads, so that none blocks the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from .trace import call_in_thread

__all__ = ["BodyThreads"]


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
