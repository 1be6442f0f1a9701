"""A context on a loop, for what a thread awaits there.

The thread is in its own context, which the loop cannot enter at the same time.
So what is awaited runs in another one, its twin: the same one each time, in
which tokens of context variables stay valid, and changes are taken over both ways.
"""

from __future__ import annotations

from collections.abc import Awaitable
from contextvars import Context, copy_context
from typing import Any

__all__ = ["LoopTwin"]

_MISSING = object()


class LoopTwin:
    """The twin of the calling thread's context; what is awaited in it takes turns."""

    def __init__(self) -> None:
        #: In which the coroutine of :meth:`run` has to run.
        self.context = copy_context()

    async def run(self, awaitable: Awaitable[Any], threads_context: Context) -> Any:
        """On the loop: await *awaitable*; *threads_context*: a copy of the thread's."""
        _take_over(threads_context)
        return await awaitable

    def take_back(self) -> None:
        """In the thread, afterwards: see what has changed on the loop."""
        _take_over(self.context)


def _take_over(context: Context) -> None:
    """Set in the current context what is set in *context*."""
    for variable, value in context.items():
        if variable.get(_MISSING) is not value:
            variable.set(value)
