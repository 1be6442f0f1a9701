"""``autoretry_for`` of a body that an ``async def __call__`` awaits.

Celery's wrapper in ``task.run`` retries for what ``task._orig_run`` raises when it is
called. Where a tracer calls, that is the value of the body, or its error. But
``await self.run()`` in an ``async def __call__`` gets a coroutine, which raises later on.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import Any

from .tasktypes import BodyWrapper

__all__ = ["AwaitedRun", "Replay", "retry_awaited"]

#: What the awaited body has raised, for Celery's wrapper to decide about; once.
_error: ContextVar[Exception | None] = ContextVar("celery_asyncpool_autoretry", default=None)


def retry_awaited(task: Any) -> None:
    """Let ``await self.run()`` of *task* retry as its ``autoretry_for`` says; harmless again."""
    if hasattr(task, "_orig_run") and not isinstance(task.run, AwaitedRun):
        task._orig_run = Replay(task._orig_run)
        task.run = AwaitedRun(task.run)


class Replay(BodyWrapper):
    """``task._orig_run``; raises again what the body has raised when it was awaited."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        error = _error.get()
        if error is None:
            return self.function(*args, **kwargs)
        _error.set(None)  # an eager retry calls the body from within Celery's wrapper
        raise error


class AwaitedRun(BodyWrapper):
    """``task.run``, Celery's wrapper, which hears of the errors of a coroutine, too."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        value = self.function(*args, **kwargs)
        return self._await(value, args, kwargs) if inspect.iscoroutine(value) else value

    async def _await(self, body: Awaitable[Any], args: Any, kwargs: Any) -> Any:
        try:
            return await body
        except Exception as exc:
            _error.set(exc)
            try:
                return self.function(*args, **kwargs)  # raises Retry, or the error
            finally:
                _error.set(None)
