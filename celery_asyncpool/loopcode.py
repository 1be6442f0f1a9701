"""Whether a plain function runs event loops itself, as far as its code tells.

``self.run()`` of an async task, called by a plain ``__call__`` of the task's class, has
to be two things: a coroutine for ``asyncio.run(self.run())``, as on every other pool,
and the value for ``with app.app_context(): return self.run()``, which serves ``def``
tasks and async ones alike. Nothing but the code of ``__call__`` tells which.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Any

from celery.app.task import Task

__all__ = ["runs_a_loop"]

#: Libraries that run loops, and functions and methods of theirs that do, by any road.
LIBRARIES = frozenset({"anyio", "asgiref", "asyncio", "nest_asyncio", "trio", "uvloop"})
RUNNERS = frozenset(
    {
        "AsyncToSync",
        "Runner",
        "async_to_sync",
        "ensure_sync",
        "run_coroutine_threadsafe",
        "run_forever",
        "run_until_complete",
    }
)

#: How many calls away from the function its helpers are looked at.
DEPTH = 3


def runs_a_loop(function: Any, cls: type, depth: int = DEPTH) -> bool:
    """Whether *function*, a method of *cls*, or a helper that it calls, names what runs loops."""
    function = getattr(function, "__func__", function)
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is not None and depth and runs_a_loop(wrapped, cls, depth - 1):
        return True
    if type(function) is not types.FunctionType or _is_async(function.__code__):
        return False
    names = set(_names(function.__code__))
    if names & (LIBRARIES | RUNNERS):
        return True
    return any(
        _is_of_library(value)
        or (depth > 0 and _is_helper(value) and runs_a_loop(value, cls, depth - 1))
        for value in _values(function, names, cls)
    )


def _names(code: types.CodeType) -> Iterator[str]:
    """The globals, attributes and modules that *code* names, and plain functions within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType) and not _is_async(constant):
            yield from _names(constant)


def _is_async(code: types.CodeType) -> bool:
    """Whether it is the code of an ``async def``, which is run by a loop and runs none."""
    return bool(code.co_flags & inspect.CO_COROUTINE)


def _values(function: types.FunctionType, names: set[str], cls: type) -> Iterator[Any]:
    """What *names* mean: globals, what the function encloses, methods that *cls* has added."""
    for name in names:
        if name in function.__globals__:
            yield function.__globals__[name]
        if name not in Task.__dict__ and hasattr(cls, name):
            yield getattr(cls, name)
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            continue  # not assigned yet


def _is_of_library(value: Any) -> bool:
    """Whether *value* is, or comes from, a library that runs loops, under whatever name."""
    if type(value) is types.ModuleType:
        name = value.__name__
    elif type(value) is types.FunctionType or isinstance(value, type):
        name = value.__module__ or ""
    else:
        return False
    return name.partition(".")[0] in LIBRARIES


def _is_helper(value: Any) -> bool:
    """Whether *value* is a function to look into; not one of Celery's own."""
    function = getattr(value, "__func__", value) if type(value) is types.MethodType else value
    return type(function) is types.FunctionType and not str(function.__module__).startswith(
        ("celery.", "kombu.", "billiard.", "celery_asyncpool.")
    )
