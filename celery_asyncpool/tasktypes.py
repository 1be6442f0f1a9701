"""What kind of body a task has.

What a function *is* shows in what it gives. That is known before the call of an
``async def``, and of what has been marked as one (:func:`inspect.markcoroutinefunction`).
A plain function that wraps an ``async def`` may give its coroutine, or run a loop of
its own for it, ``functools.wraps`` or not: that is known afterwards, so it is called
where either works, in a thread.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import types
from typing import Any

from celery.app.task import Task
from celery.utils.log import get_logger

from .loopcode import runs_a_loop
from .pydantic_bodies import is_pydantic_wrapper, with_models

__all__ = [
    "HANDLERS",
    "MAPS",
    "BodyWrapper",
    "body_attribute",
    "custom_call",
    "has_async_body",
    "has_hidden_body",
    "is_async",
    "mark_like",
    "mark_task",
    "name_hidden_bodies",
    "use_models",
]

logger = get_logger(__name__)

#: The methods of a task that a tracer calls beside its body.
HANDLERS = ("before_start", "on_success", "on_failure", "on_retry", "after_return")

#: Celery's own tasks that call others, one after the other, and want their values.
MAPS = ("celery.map", "celery.starmap")


def _marks() -> dict[str, Any]:
    """How functions that only give coroutines are marked: attributes, and their values."""
    marks = {}
    if sys.version_info >= (3, 12):

        def marked() -> None: ...

        marks.update(vars(inspect.markcoroutinefunction(marked)))
    # asyncio's own, of which libraries make use before that, and some still do.
    if hasattr(asyncio.coroutines, "_is_coroutine"):
        marks["_is_coroutine"] = asyncio.coroutines._is_coroutine
    return marks


MARKS = _marks()


def body_attribute(task: Any) -> str:
    """Name of the attribute that holds the task's own function.

    ``autoretry_for`` keeps it in ``_orig_run`` and puts a plain function into
    ``run``.
    """
    return "_orig_run" if hasattr(task, "_orig_run") else "run"


def custom_call(cls: type) -> Any:
    """The ``__call__`` with which *cls*, a class of tasks, overrides Celery's; else None."""
    for base in cls.__mro__:
        if base is Task:
            return None
        if "__call__" in base.__dict__:
            return base.__dict__["__call__"]
    return None


def has_async_body(task: Any) -> bool:
    """Whether the loop awaits the body of *task*; else it is called in a thread.

    A plain ``__call__`` is called on the loop with an async body, whose value it gets,
    unless it runs a loop itself.
    """
    call = custom_call(type(task))
    if call is not None and is_async(call):
        return True
    if call is not None and runs_a_loop(call, type(task)):
        return False
    return is_async(getattr(task, body_attribute(task)))


def has_hidden_body(task: Any) -> bool:
    """Whether plain functions hide the ``async def`` of *task*: it is called in a thread."""
    if has_async_body(task):
        return False
    function = getattr(task, body_attribute(task))
    return is_async(function) or is_async(inspect.unwrap(_inner(function)))


class BodyWrapper:
    """A wrapper of the package around a *function* of a task, which gives what that gives.

    It looks like its function to :func:`inspect.iscoroutinefunction` and asyncio's.
    """

    def __init__(self, function: Any) -> None:
        functools.update_wrapper(self, function)  # type: ignore[arg-type]
        self.function = function
        mark_like(self, function)


def name_hidden_bodies(app: Any) -> None:
    """Say in the log which async tasks of *app* need a thread each, and why."""
    names = [name for name, task in sorted(app.tasks.items()) if has_hidden_body(task)]
    if names:
        logger.info(
            "async def tasks behind a plain decorator, or a plain __call__, that may run a loop "
            "itself: they are called in threads, asyncpool_threads of a process at once. With an "
            "async def decorator, or inspect.markcoroutinefunction, they need none: %s",
            ", ".join(names),
        )


def is_async(function: Any) -> bool:
    """Whether a call of *function* gives a coroutine, for certain."""
    function = _inner(function)
    if type(function) is types.FunctionType:
        return bool(function.__code__.co_flags & inspect.CO_COROUTINE) or _is_marked(function)
    # Not what it claims to be: objects of wrapt's, say, have the class of what they wrap.
    call = inspect.getattr_static(type(function), "__call__", None)
    return _is_marked(function) or (type(call) is types.FunctionType and is_async(call))


def mark_like(wrapper: Any, function: Any) -> None:
    """Let Python know of *wrapper* that it gives a coroutine if *function* does, and only then."""
    gives_coroutine = is_async(function)
    for name, mark in MARKS.items():
        if gives_coroutine:
            setattr(wrapper, name, mark)
        elif getattr(wrapper, name, None) is mark:
            setattr(wrapper, name, None)
    if gives_coroutine and sys.version_info < (3, 12) and not inspect.isclass(wrapper):
        # Without marks in :mod:`inspect`, which looks at the code of what looks like one.
        code = _inner(function)
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            if hasattr(code, name) and not hasattr(wrapper, name):
                setattr(wrapper, name, getattr(code, name))


def mark_task(task: Any) -> None:
    """Let Python know of *task*, or of a class of tasks, what a call of it gives."""
    cls = task if inspect.isclass(task) else type(task)
    call = custom_call(cls)
    mark_like(task, getattr(task, body_attribute(task)) if call is None else call)


def use_models(cls: Any) -> None:
    """Let *cls*, the class of a task with ``pydantic=True``, dump what its coroutine gives."""
    run = cls.__dict__.get("run")
    function = run.__func__ if isinstance(run, staticmethod) else run
    with_dump = with_models(function, is_async)
    if with_dump is not function:
        cls.run = staticmethod(with_dump) if isinstance(run, staticmethod) else with_dump


def _inner(function: Any) -> Any:
    """What a call of *function* calls, as far as nothing can come between."""
    while True:
        kind = type(function)
        if issubclass(kind, functools.partial):
            function = function.func
        elif kind in (types.MethodType, staticmethod, classmethod):
            function = function.__func__
        elif issubclass(kind, BodyWrapper):
            function = function.function
        elif is_pydantic_wrapper(function):
            function = function.__wrapped__
        else:
            return function


def _is_marked(function: Any) -> bool:
    """Whether *function* has a mark that it has not just copied with ``functools.wraps``."""
    wrapped = getattr(function, "__wrapped__", None)
    return any(
        getattr(function, name, None) is mark and getattr(wrapped, name, None) is not mark
        for name, mark in MARKS.items()
    )
