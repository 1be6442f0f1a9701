"""Celery's own tracer, run over the event loop.

The tracer is synchronous: it calls the task and expects its result. Each job
of an async task runs it in a greenlet. Where the tracer calls the task's
function, :func:`settle` switches to the loop's greenlet, the loop awaits the
coroutine, and the greenlet is switched back in with the result or exception:
the tracer sees an ordinary call. Blocking calls that the tracer makes leave
the same way, for a thread (:mod:`.offload`).

The greenlet shares the context of the job's asyncio task (it is the same
object, not a copy), so ``task_prerun``, body and ``task_postrun`` are one
context to OpenTelemetry, Sentry and everything else that uses contextvars.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import greenlet

__all__ = [
    "Tracer",
    "bind_loop",
    "call_in_thread",
    "can_settle",
    "drive",
    "in_tracer",
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
    """The greenlet in which one job's tracer runs."""

    def wait(self, awaitable: Awaitable[Any]) -> Any:
        """Switch to the loop until *awaitable* is done; called by the tracer."""
        loop_greenlet = self.parent
        assert loop_greenlet is not None
        return loop_greenlet.switch(awaitable)


def in_tracer() -> Tracer | None:
    """Return the tracer whose greenlet the calling code runs in, if any."""
    current = greenlet.getcurrent()
    return current if isinstance(current, Tracer) else None


def on_loop_thread() -> bool:
    """Whether the calling code runs in a thread with a running event loop."""
    return asyncio._get_running_loop() is not None


async def drive(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Run *function* in a :class:`Tracer` and await what it waits for.

    Returns its return value, or raises what it raises.
    """
    tracer = Tracer(function)
    tracer.gr_context = greenlet.getcurrent().gr_context
    try:
        awaitable = tracer.switch(*args, **kwargs)
        while not tracer.dead:
            try:
                value = await awaitable
            except BaseException as exc:
                awaitable = tracer.throw(type(exc), exc, exc.__traceback__)
            else:
                awaitable = tracer.switch(value)
        return awaitable
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
        return asyncio.run_coroutine_threadsafe(_await(value), _loop).result()
    return value


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
