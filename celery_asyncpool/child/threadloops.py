"""Event loops that ``def`` bodies run in their threads: ``asyncio.run(...)`` and the like."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

__all__ = ["wake_loops"]


def wake_loops(thread: int) -> None:
    """Let the loops that run in *thread* turn, so that what was raised there arrives now.

    An exception arrives at the thread's next step of Python. A loop with nothing to
    do takes none before its next timer.
    """
    for loop in set(_loops(thread)):
        if loop.is_running():
            # Not a function of Python's: the exception would be raised in it, and
            # logged by the loop as an error of this callback.
            loop.call_soon_threadsafe(int)


def _loops(thread: int) -> Iterator[asyncio.AbstractEventLoop]:
    """The loops that are found on the stack of *thread*, running or not."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        for value in list(frame.f_locals.values()):
            # By their real types: a proxy (Celery's, Django's) would look for its object.
            if issubclass(type(value), asyncio.AbstractEventLoop):
                yield value
            elif type(value) is asyncio.Runner:
                yield value.get_loop()
        frame = frame.f_back
