"""Eager calls: ``apply()`` and ``task_always_eager`` run ``async def`` bodies.

Celery's tracer runs in the calling thread, as ever. What its task gives to be
awaited is awaited

- on an event loop of the call's own, where none runs in the calling thread;
- on such a loop in a private thread, where one does: the caller is blocked, as
  ``apply()`` always blocks, and so is its loop;
- on the caller's loop, when the caller awaits :func:`call`.

With Django, its rule for threads comes first: bodies run through asgiref's
``async_to_sync``, so that what they ask of the ORM is done in the calling
thread, in the connection and transaction of the test that called.

An ``AsyncTask`` brings this with it. :func:`install` gives it to all tasks of a
process; the pytest plugin (:mod:`.testing`) does so for tests. Nothing is left
open: neither a loop, nor a thread.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import CancelledError as TaskBodyCancelled
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from typing import Any, Protocol

from celery._state import _task_stack  # type: ignore[attr-defined]
from celery.app.task import Task

from .child.jobcontext import (
    JobContext,
    current_job,
    follow_jobs,
    follow_task_stack,
    job_entered,
)
from .child.looptwin import LoopTwin
from .child.retries import body_ended
from .loopcode import runs_a_loop
from .outcomes import unwrapped
from .pydantic_bodies import with_models
from .returned import check_returned
from .signals import wrap_receivers
from .tasktypes import (
    HANDLERS,
    MAPS,
    BodyWrapper,
    body_attribute,
    custom_call,
    has_async_body,
    has_hidden_body,
    is_async,
    mark_task,
)

__all__ = [
    "CallersLoop",
    "EagerCallError",
    "apply",
    "call",
    "close_connections",
    "install",
    "prepare",
    "uninstall",
    "uses_django",
    "with_awaiter",
]


class EagerCallError(RuntimeError):
    """An eager call where it would block the loop of the body that calls."""


class _Awaiter(Protocol):
    """Awaits for the tracers of one thread."""

    #: A body or handler runs: what its code calls is not for the tracer.
    is_busy: bool

    def run(self, awaitable: Awaitable[Any]) -> Any:
        """Await *awaitable* and return its value, while the calling thread waits."""

    def close(self) -> None:
        """The eager call is over."""


class _Thread(threading.local):
    """Who awaits for the eager calls of this thread."""

    awaiter: _Awaiter | None = None


_thread = _Thread()


# What task authors call.


async def call(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Await an eager call: ``await call(task.apply, args=(1,))``.

    *function* is anything of Celery's that calls tasks eagerly: ``task.apply``,
    a signature's ``apply``, ``task.delay`` with ``task_always_eager``. It runs in
    a thread, while async bodies run on the loop of the caller, which stays free,
    and where its lifespans live. Returns what *function* returns.
    """
    work = functools.partial(function, *args, **kwargs)
    if uses_django():
        from asgiref.sync import sync_to_async

        return await sync_to_async(with_awaiter)(_DjangoLoop(), work)
    awaiter = CallersLoop(asyncio.get_running_loop())
    thread = _CallThread(functools.partial(with_awaiter, awaiter, work))
    done = asyncio.wrap_future(thread.outcome)
    thread.start()
    try:
        await asyncio.wait([done])
    except asyncio.CancelledError:
        awaiter.cancel()
        await asyncio.wait([done])
        with suppress(BaseException):
            done.result()
        raise
    finally:
        if done.done():  # else it was cancelled twice, and the thread needs this loop
            thread.join()
    return done.result()


def install() -> None:
    """Let eager calls of all tasks in this process run ``async def`` bodies.

    Changes ``celery.Task.apply``, through which ``task_always_eager`` goes, too.
    Harmless when repeated; :func:`uninstall` undoes it.
    """
    if not hasattr(Task.apply, "_celery_asyncpool"):
        Task.apply = _eager(Task.apply)  # type: ignore[method-assign]


def uninstall() -> None:
    """Undo :func:`install`."""
    original = getattr(Task.apply, "_celery_asyncpool", None)
    if original is not None:
        Task.apply = original  # type: ignore[method-assign]


def _eager(original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return apply(self, functools.partial(original, self), *args, **kwargs)

    method._celery_asyncpool = original  # type: ignore[attr-defined]
    return method


# For overrides of ``Task.apply``.


def apply(task: Any, original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call *original*, the ``apply`` of *task*'s parent class, so that it runs async bodies.

    Raises :exc:`EagerCallError` where an async body calls another async task
    on its own loop.
    """
    registered = task.app.tasks.get(task.name, task)
    prepare(registered)
    work = functools.partial(_trace, functools.partial(original, *args, **kwargs))
    needs_loop = has_async_body(registered)
    if not _on_loop_thread() or not (needs_loop or has_hidden_body(registered)):
        return work()
    if needs_loop and current_job() is not None:
        raise EagerCallError(
            f"task {registered.name} was called eagerly from the body of another async task, "
            "whose event loop it would block: `await` it instead, with "
            f"`await {_short(registered)}(...)` for its value, or with "
            f"`await celery_asyncpool.eager.call({_short(registered)}.apply, args=[...])` "
            "for its result"
        )
    return _in_thread(work)


def prepare(task: Any) -> None:
    """Make *task*'s functions awaitable by eager calls; outside of these they are as before.

    To be repeated before each call: tests replace functions of tasks, and put
    them back.
    """
    follow_task_stack()
    if task.name in MAPS:
        for mapped in task.app.tasks.values():
            if mapped.name not in MAPS:
                prepare(mapped)
    follow_jobs(task)
    wrap_receivers(_awaited_receivers)
    _wrap_body(task)
    for handler in HANDLERS:
        if getattr(type(task), handler) is not getattr(Task, handler):
            _wrap(task, handler)
    _wrap_custom_call(type(task))


# Inside.


def _trace(work: Callable[[], Any]) -> Any:
    """Do *work*, which calls a tracer; somebody awaits for it."""
    with _own_stacks():
        outer = _thread.awaiter
        if outer is not None and not outer.is_busy:
            return work()  # a callback or a retry of the eager call that is under way
        awaiter: _Awaiter = _DjangoLoop() if uses_django() else _OwnLoop()
        return with_awaiter(awaiter, work)


def with_awaiter(awaiter: _Awaiter, work: Callable[[], Any]) -> Any:
    """Do *work*, which calls a tracer; *awaiter* awaits for it."""
    outer, _thread.awaiter = _thread.awaiter, awaiter
    try:
        return work()
    finally:
        _thread.awaiter = outer
        awaiter.close()


@contextmanager
def _own_stacks() -> Iterator[None]:
    """Celery's stacks for one eager call, which follow it into its body.

    They begin with the calling task, the parent of the one that is called.
    """
    parent = _task_stack.top
    request = parent.request_stack.top if parent is not None else None
    with job_entered(JobContext(0)):
        if request is None:
            yield
            return
        _task_stack.push(parent)
        parent.request_stack.push(request)
        try:
            yield
        finally:
            parent.request_stack.pop()
            _task_stack.pop()


class _Call(BodyWrapper):
    """A body or handler whose awaitable result an eager call's tracer gets awaited."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        awaiter = _thread.awaiter
        if awaiter is None or awaiter.is_busy:
            return self.function(*args, **kwargs)  # not for an eager tracer
        return _await_with(awaiter, functools.partial(self.function, *args, **kwargs))


def _await_with(awaiter: _Awaiter, call: Callable[[], Any]) -> Any:
    """Make *call*, which runs code of the user's, and return what it gives, awaited."""
    awaiter.is_busy = True
    try:
        value = call()
    finally:
        awaiter.is_busy = False
    return _awaited(awaiter, value) if inspect.isawaitable(value) else value


def _awaited(awaiter: _Awaiter, awaitable: Awaitable[Any]) -> Any:
    awaiter.is_busy = True
    try:
        return awaiter.run(awaitable)
    finally:
        awaiter.is_busy = False


def _awaited_receivers(name: str, receivers: list[Any]) -> list[Any]:
    awaiter = _thread.awaiter
    if awaiter is None or awaiter.is_busy:
        return receivers
    return [_Receiver(receiver) for receiver in receivers]


class _Receiver(_Call):
    """A receiver of a signal that an eager call's tracer sends."""

    def __repr__(self) -> str:
        return repr(self.function)  # for Celery's log


class _Body(_Call):
    """The body of *task*."""

    def __init__(self, function: Callable[..., Any], task: Any) -> None:
        super().__init__(function)
        self.task = task

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        awaiter = _thread.awaiter
        if awaiter is None or awaiter.is_busy:
            return self.function(*args, **kwargs)
        if self.task.name in MAPS:  # they call other tasks in the place of the tracer
            return self.function(*args, **kwargs)
        return _with_one_outcome(self.task, functools.partial(super().__call__, *args, **kwargs))


def _wrap_body(task: Any) -> None:
    name = body_attribute(task)
    function = getattr(task, name)
    if not _is_wrapped(function):
        mark_task(task)
        setattr(task, name, _Body(with_models(function, is_async), task))


def _is_wrapped(function: Any) -> bool:
    """Whether one of ours is in *function*; tools put their own around it (Sentry)."""
    while function is not None and not isinstance(function, _Body):
        function = getattr(function, "__wrapped__", None)
    return function is not None


def _with_one_outcome(task: Any, body: Callable[[], Any]) -> Any:
    """Call *body*, of whose many retries there may be one; see :mod:`.child.retries`."""
    error: BaseException | None = None
    try:
        return check_returned(task, body())
    except BaseException as exc:
        error = unwrapped(exc)
        if error is exc or error is None:
            raise
        raise error from None
    finally:
        job = current_job()
        if job is not None and job.retries:
            body_ended(job, error)
        del error  # it refers to this frame


def _wrap(task: Any, name: str) -> None:
    function = getattr(task, name)
    if not isinstance(function, _Call):
        setattr(task, name, _Call(function))


def _wrap_custom_call(cls: type) -> None:
    call = custom_call(cls)
    if call is not None and not hasattr(call, "_celery_asyncpool_eager"):
        base = next(base for base in cls.__mro__ if "__call__" in base.__dict__)
        setattr(base, "__call__", _custom_call(call, cls))  # noqa: B010


def _custom_call(method: Callable[..., Any], cls: type) -> Any:
    # Else its `self.run` is the body, and it gets the value of that.
    is_body = is_async(method) or runs_a_loop(method, cls)

    @functools.wraps(method)
    def __call__(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        awaiter = _thread.awaiter
        call = functools.partial(method, self, *args, **kwargs)
        if awaiter is None or awaiter.is_busy:
            return call()
        if is_body:
            return _with_one_outcome(self, functools.partial(_await_with, awaiter, call))
        value = call()
        if not inspect.isawaitable(value):
            return value
        return _with_one_outcome(self, functools.partial(_awaited, awaiter, value))

    __call__._celery_asyncpool_eager = True  # type: ignore[attr-defined]
    return __call__


class _OwnLoop:
    """A loop for one eager call, made at its first need."""

    def __init__(self) -> None:
        self.is_busy = False
        self._runner: asyncio.Runner | None = None
        self._twin: LoopTwin | None = None

    def run(self, awaitable: Awaitable[Any]) -> Any:
        if self._runner is None:
            # With a factory, the runner leaves the thread's current loop alone.
            self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        return _off_loop(functools.partial(self._run, self._runner, awaitable))

    def close(self) -> None:
        if self._runner is not None:
            _off_loop(self._runner.close)

    def _run(self, runner: asyncio.Runner, awaitable: Awaitable[Any]) -> Any:
        if self._twin is None:
            self._twin = LoopTwin()
        twin = self._twin
        try:
            return runner.run(twin.run(awaitable, copy_context()), context=twin.context)
        except asyncio.CancelledError as exc:
            raise _cancelled(exc) from exc
        finally:
            twin.take_back()


class CallersLoop:
    """A loop that runs in another thread: that of one who awaits :func:`call`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.is_busy = False
        self._loop = loop
        self._body: asyncio.Task[Any] | None = None
        self._twin: LoopTwin | None = None
        self._is_cancelled = False
        self._error: BaseException | None = None

    def run(self, awaitable: Awaitable[Any]) -> Any:
        outcome: Future[Any] = Future()
        if self._twin is None:
            self._twin = LoopTwin()
        twin = self._twin
        self._loop.call_soon_threadsafe(self._start, twin, awaitable, copy_context(), outcome)
        try:
            return outcome.result()
        except asyncio.CancelledError as exc:
            raise self._error or _cancelled(exc) from exc
        finally:
            twin.take_back()

    def close(self) -> None:
        pass

    def cancel(self, error: BaseException | None = None) -> None:
        """On the loop: cancel the body; when it has ended, the tracer sees *error*."""
        self._is_cancelled = True
        self._error = error
        if self._body is not None:
            self._body.cancel()

    def _start(
        self, twin: LoopTwin, awaitable: Awaitable[Any], context: Context, outcome: Future[Any]
    ) -> None:
        work = _await_all(twin.run(awaitable, context), outcome)
        self._body = self._loop.create_task(work, context=twin.context)
        self._body.add_done_callback(functools.partial(self._finish, awaitable, outcome))
        if self._is_cancelled:
            self._body.cancel()

    def _finish(
        self, awaitable: Awaitable[Any], outcome: Future[Any], body: asyncio.Task[Any]
    ) -> None:
        self._body = None
        if not outcome.done():  # it was cancelled before its first step
            if inspect.iscoroutine(awaitable):
                awaitable.close()
            outcome.set_exception(asyncio.CancelledError())


class _DjangoLoop:
    """What asgiref decides: the caller's loop, or one of its own beside this thread."""

    def __init__(self) -> None:
        self.is_busy = False

    def run(self, awaitable: Awaitable[Any]) -> Any:
        return _off_loop(functools.partial(self._run, awaitable))

    def close(self) -> None:
        pass

    def _run(self, awaitable: Awaitable[Any]) -> Any:
        from asgiref.sync import async_to_sync

        try:
            return async_to_sync(_await)(awaitable)
        except asyncio.CancelledError as exc:
            raise _cancelled(exc) from exc


class _CallThread(threading.Thread):
    """Makes one call in the context of the thread that made this one."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(name="asyncpool-eager", daemon=True)
        self.outcome: Future[Any] = Future()
        # `_context` is the thread's own, in which Python 3.14 runs it.
        self._callers_context = copy_context()
        self._work = work

    def run(self) -> None:
        try:
            value = self._callers_context.run(self._work)
        except BaseException as exc:
            self.outcome.set_exception(exc)
        else:
            self.outcome.set_result(value)
        finally:
            del self._work
            if uses_django():
                close_connections()


def _in_thread(work: Callable[[], Any]) -> Any:
    """Do *work* in a thread without a loop, and wait for it."""
    thread = _CallThread(work)
    thread.start()
    thread.join()
    return thread.outcome.result()


def _off_loop(work: Callable[[], Any]) -> Any:
    """Do *work*, which runs a loop, here, or where one runs here, in a thread."""
    return _in_thread(work) if _on_loop_thread() else work()


def _on_loop_thread() -> bool:
    return asyncio._get_running_loop() is not None


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


async def _await_all(awaitable: Awaitable[Any], outcome: Future[Any]) -> None:
    """Give all that *awaitable* returns or raises to *outcome*.

    The loop must not see a SystemExit, which would end it.
    """
    try:
        value = await awaitable
    except BaseException as exc:
        outcome.set_exception(exc)
    else:
        outcome.set_result(value)


def _cancelled(exc: BaseException) -> Exception:
    """As in the pool: to the tracer a cancelled body is a failed one."""
    return TaskBodyCancelled(f"the task's body was cancelled: {exc!r}")


def _short(task: Any) -> str:
    return str(task.name).rpartition(".")[2]


def uses_django() -> bool:
    """Whether this process uses Django's ORM: to import it is not enough."""
    if "django.db" not in sys.modules:
        return False
    from django.conf import ENVIRONMENT_VARIABLE, settings

    return settings.configured or ENVIRONMENT_VARIABLE in os.environ


def close_connections() -> None:
    """Close what this thread, which ends, has opened."""
    from django.db import connections

    connections.close_all()
