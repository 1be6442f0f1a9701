"""Celery's own tracer, run over the event loop.

The tracer is synchronous: it calls the task and expects its result. Each job
of an async task runs it in a greenlet. Where the tracer calls the task's
function, :func:`settle` steps the coroutine there, in the tracer's greenlet.
What the coroutine waits for is switched out to the loop's greenlet, which
waits for it in the job's asyncio task, and the outcome is switched in: the
tracer sees an ordinary call. Blocking calls that the tracer makes leave the
same way, for a thread (:mod:`.offload`).

So tracer and body share whatever a tool may find them by: the greenlet, the
asyncio task, the thread, and the context. The greenlet's context is that of
the asyncio task (it is the same object, not a copy), so ``task_prerun``, body
and ``task_postrun`` are one context to OpenTelemetry, Sentry and everything
else that uses contextvars.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import types
from asyncio import Task  # as it is now: a body may put another in its place
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextvars import Context, copy_context
from typing import Any

import greenlet

from .forks import end_copy, ends_copies
from .jobcontext import current_job
from .looptwin import LoopTwin

__all__ = [
    "Tracer",
    "bind_loop",
    "call_in_thread",
    "call_on_loop",
    "can_settle",
    "drive",
    "in_tracer",
    "keep_loop_running",
    "on_loop_thread",
    "settle",
]


class _Thread(threading.local):
    """What a thread of this process may do."""

    may_block = False


_thread = _Thread()
_loop: asyncio.AbstractEventLoop | None = None


def bind_loop(loop: asyncio.AbstractEventLoop | None) -> None:
    """Say which loop awaits for the pool's threads; None when it has ended."""
    global _loop
    _loop = loop


class Tracer(greenlet.greenlet):
    """The greenlet in which one job's tracer, and its async body, run."""

    #: Whether async code is being stepped: it awaits, and never waits.
    is_stepping = False

    def wait(self, awaitable: Awaitable[Any]) -> Any:
        """Step *awaitable* until it is done, and return its value; called by the tracer."""
        steps: Any = awaitable if hasattr(awaitable, "throw") else _await(awaitable)
        error: BaseException | None = None
        value = None
        self.is_stepping = True
        try:
            while True:
                if error is None:
                    pending = steps.send(value)
                else:
                    # Not in the handler below: async code sees no exception
                    # but those that are raised in it.
                    error, raised = None, error
                    try:
                        pending = steps.throw(raised)
                    finally:
                        del raised
                loop_greenlet = self.parent
                assert loop_greenlet is not None
                try:
                    value = loop_greenlet.switch(pending)
                except BaseException as exc:
                    error = exc
        except StopIteration as stop:
            return stop.value
        finally:
            self.is_stepping = False
            del error, steps, awaitable

    def call_on_loop(self, function: Callable[[], Any]) -> Any:
        """Call *function* in the loop's greenlet, at once; called by async code."""
        loop_greenlet = self.parent
        assert loop_greenlet is not None
        return loop_greenlet.switch(_Call(function))


class _Call:
    """What async code wants to be called in the loop's greenlet."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function


def in_tracer() -> Tracer | None:
    """Return the tracer whose greenlet the calling code runs in; None for its async code."""
    current = greenlet.getcurrent()
    return current if isinstance(current, Tracer) and not current.is_stepping else None


def keep_loop_running() -> None:
    """After code of a user's in a tracer: tell asyncio again which loop runs.

    Code that runs a loop of its own in a running one tells asyncio before that none runs.
    """
    if asyncio._get_running_loop() is None and in_tracer() is not None:
        asyncio._set_running_loop(_loop)


def call_on_loop(function: Callable[[], Any]) -> Any:
    """Call *function*, which starts async code, where it will be stepped later on.

    The first step of an eager task (Python 3.12) is made where it is started:
    a library that remembers the greenlet of that step must not find a job's.
    """
    current = greenlet.getcurrent()
    if isinstance(current, Tracer):
        return current.call_on_loop(function)
    return function()


def on_loop_thread() -> bool:
    """Whether the calling code runs in a thread with a running event loop."""
    return asyncio._get_running_loop() is not None


@types.coroutine
def drive(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
    """Run *function* in a :class:`Tracer` and wait for what it waits for.

    Returns its return value, or raises what it raises.
    """
    tracer = Tracer(function)
    tracer.gr_context = greenlet.getcurrent().gr_context
    try:
        pending = tracer.switch(*args, **kwargs)
        while not tracer.dead:
            try:
                value = pending.function() if type(pending) is _Call else (yield pending)
                if ends_copies.is_copy:
                    end_copy(None)  # a neighbour's fork has no business in this job
            except BaseException as exc:
                tracer.parent = greenlet.getcurrent()
                pending = tracer.throw(type(exc), exc, exc.__traceback__)
            else:
                # What it switches out comes here, also where a loop that runs
                # in a loop steps it from another job's greenlet.
                tracer.parent = greenlet.getcurrent()
                pending = tracer.switch(value)
        return pending
    finally:
        # The greenlet refers to its frames, and these to the exception that
        # passed through here: without this, a failed job is left to the
        # garbage collector.
        del tracer


def call_in_thread(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call *function* in the running thread, where :func:`settle` may block.

    For threads of the pool that run Celery's own code: a whole tracer, or what
    one has sent away.
    """
    _thread.may_block = True
    try:
        return function(*args, **kwargs)
    finally:
        _thread.may_block = False


def can_settle() -> bool:
    """Whether :func:`settle` awaits here: in a tracer or on its behalf."""
    return in_tracer() is not None or (_loop is not None and _thread.may_block)


def settle(value: Any) -> Any:
    """Return *value*, awaited if it is awaitable and the caller is a tracer.

    Elsewhere (an async ``__call__`` that awaits ``self.run()``, a body that
    calls another task directly) an awaitable is returned as it is.
    """
    if not inspect.isawaitable(value):
        return value
    tracer = in_tracer()
    if tracer is not None:
        return tracer.wait(value)
    if _loop is not None and _thread.may_block:
        return _await_on_loop(value, _loop)
    return value


def _await_on_loop(awaitable: Awaitable[Any], loop: asyncio.AbstractEventLoop) -> Any:
    """In a job's thread: await *awaitable* on *loop*."""
    job = current_job()
    twin = job.twin if job is not None else None
    if twin is None:
        twin = LoopTwin()
        if job is not None:
            job.twin = twin
    outcome: Future[Any] = Future()
    loop.call_soon_threadsafe(_start, loop, twin, awaitable, copy_context(), outcome)
    try:
        return outcome.result()
    finally:
        twin.take_back()


def _start(
    loop: asyncio.AbstractEventLoop,
    twin: LoopTwin,
    awaitable: Awaitable[Any],
    threads_context: Context,
    outcome: Future[Any],
) -> None:
    waiting = _tell(twin.run(awaitable, threads_context), outcome)
    task = Task(waiting, loop=loop, context=twin.context)
    task.add_done_callback(functools.partial(_end, awaitable, outcome))


async def _tell(coroutine: Coroutine[Any, Any, Any], outcome: Future[Any]) -> None:
    """Give all to *outcome*: the loop must see neither a SystemExit nor a lost error."""
    try:
        with ends_copies:
            value = await coroutine
    except BaseException as exc:
        outcome.set_exception(exc)
    else:
        outcome.set_result(value)


def _end(awaitable: Awaitable[Any], outcome: Future[Any], task: Task[None]) -> None:
    if not outcome.done():  # it was cancelled before its first step
        if inspect.iscoroutine(awaitable):
            awaitable.close()
        outcome.set_exception(asyncio.CancelledError())


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
