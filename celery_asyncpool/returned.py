"""What a body cannot return: what nobody would run."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

__all__ = ["check_returned"]


#: What most bodies return.
VALUES = frozenset({bool, bytes, dict, float, int, list, str, tuple, type(None)})


def check_returned(task: Any, value: Any) -> Any:
    """Return *value*, which the body of *task* has returned and the pool has awaited.

    Raises ``TypeError`` for a generator, and for what is still to be awaited: it
    would run outside of the task's limits, if at all. It is closed, or cancelled.
    Where there is no task (None), the value is its caller's.
    """
    if task is None:
        return value
    if inspect.isgenerator(value) or inspect.isasyncgen(value):
        if inspect.isgenerator(value):
            value.close()
        raise TypeError(
            f"task {task.name} returned a generator, which nobody would run; "
            "return a value, or a list of what it yields"
        )
    if inspect.isawaitable(value):
        what = _what(value)
        _give_up(value)
        raise TypeError(
            f"task {task.name} returned {what}, which nobody has awaited: an `await` is "
            "missing. Return what it gives, as in `return await ...`"
        )
    return value


def _what(awaitable: Any) -> str:
    if inspect.iscoroutine(awaitable):
        return f"the coroutine of {awaitable.__qualname__}()"
    return f"an object of the type {type(awaitable).__qualname__}"


def _give_up(awaitable: Any) -> None:
    if inspect.iscoroutine(awaitable):
        awaitable.close()
    elif asyncio.isfuture(awaitable):
        loop = awaitable.get_loop()
        if not loop.is_closed():  # whose thread may be another one
            loop.call_soon_threadsafe(_cancel, awaitable)


def _cancel(future: asyncio.Future[Any]) -> None:
    future.add_done_callback(_retrieve)
    future.cancel()


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Look at what it has come to, so that asyncio does not complain that nobody has."""
    if not future.cancelled():
        future.exception()
