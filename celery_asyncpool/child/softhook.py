"""One call of a task's ``on_soft_limit``, on the loop, while the body goes on.

It belongs to the body: it runs in a copy of the body's context, so that
``task.request`` is the job's, and is cancelled when the body ends.
"""

from __future__ import annotations

import asyncio
import inspect
from asyncio import Task
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any

from celery.utils.log import get_logger

from ..softlimits import hook_of

__all__ = ["SoftLimitHook", "in_hook"]

logger = get_logger(__name__)

_in_hook: ContextVar[bool] = ContextVar("celery_asyncpool_in_soft_limit_hook", default=False)


def in_hook() -> bool:
    """Whether the calling code belongs to a hook, not to the body."""
    return _in_hook.get()


class SoftLimitHook:
    """Calls *hook* with *task* when the soft limit of its job is over; once."""

    def __init__(self, hook: Callable[[Any], Any], task: Any, who: str) -> None:
        self.hook = hook
        self.task = task
        #: The task's name and id, for the log.
        self.who = who
        self._running: asyncio.Task[None] | None = None
        self._is_cancelled = False

    @classmethod
    def of(cls, task: Any, who: str) -> SoftLimitHook | None:
        """The hook of one job of *task*; None where the limit is to be raised."""
        hook = hook_of(task)
        return cls(hook, task, who) if hook is not None else None

    def start(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        """Call the hook on *loop*, at its next turn, in a copy of *context*."""
        # Not `create_task`, whose task might not be ours to make, nor wait for a turn.
        self._running = Task(self._run(), loop=loop, context=context.copy())

    @property
    def is_running(self) -> bool:
        """Whether the hook has been started and has not ended."""
        return self._running is not None and not self._running.done()

    def cancel(self) -> None:
        """End the hook; harmless when it has ended."""
        if self._running is not None:
            self._is_cancelled = True
            self._running.cancel()

    async def stop(self, grace: float) -> None:
        """Cancel the hook and wait until it has cleaned up, for at most *grace* seconds."""
        self.cancel()
        if self._running is not None:
            await asyncio.wait({self._running}, timeout=grace)
        if self.is_running:
            logger.error("on_soft_limit of %s does not end, %s s after the body", self.who, grace)

    async def _run(self) -> None:
        _in_hook.set(True)
        try:
            value = self.hook(self.task)
            if inspect.isawaitable(value):
                await value
        except BaseException as exc:
            # Whatever a hook raises is no reason to end the body, or the loop.
            if self._is_cancelled and isinstance(exc, asyncio.CancelledError):
                raise
            logger.error("on_soft_limit of %s failed; the task goes on", self.who, exc_info=True)
