"""Make a task's functions callable by Celery's synchronous tracer.

The innermost function is wrapped: ``task._orig_run`` where ``autoretry_for``
has wrapped ``run``, else ``task.run``; so retries, Sentry and other wrappers
around it see the result, not a coroutine. This must happen before the task's
tracer is built, since the tracer keeps what it finds then.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

from celery.app import trace
from celery.app.task import Task as BaseTask
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.nodenames import gethostname

from ..loopcode import runs_a_loop
from ..pydantic_bodies import with_models
from ..returned import check_returned
from ..tasktypes import (
    HANDLERS,
    MAPS,
    BodyWrapper,
    body_attribute,
    custom_call,
    has_async_body,
    is_async,
    mark_task,
)
from .cancel import BodyControl, BodyStopped, StopThread
from .forks import ends_copies
from .jobcontext import JobContext, current_job, follow_jobs
from .offload import OffloadedBackend
from .retries import RetryAfterBody, body_ended
from .softhook import SoftLimitHook
from .steps import HandlerCall
from .trace import can_settle, in_tracer, keep_loop_running, settle

__all__ = ["RunCall", "build_trace", "call_body", "prepare", "run_body"]


class SettledCall(BodyWrapper):
    """A function whose awaitable result the tracer gets awaited."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return settle(self.function(*args, **kwargs))


class RunCall(SettledCall):
    """The task's own function: the body of its jobs."""

    def __init__(self, function: Callable[..., Any], task: Any) -> None:
        super().__init__(function)
        self.task = task
        #: Whether the task's jobs need no thread: the loop awaits their bodies.
        self.is_async = has_async_body(task)
        #: Celery's own tasks that call others in the place of the tracer.
        self.is_map = task.name in MAPS

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        job = current_job()
        if job is None or not _calls_for_tracer(job):
            return self.function(*args, **kwargs)
        call = functools.partial(self.function, *args, **kwargs)
        if not self.is_map:
            call = functools.partial(call_body, job, call)
        return run_body(job, self.task, call)


class OutermostCall(SettledCall):
    """What the tracer calls instead of the task's ``run``."""

    def __init__(self, function: Callable[..., Any], task: Any) -> None:
        super().__init__(function)
        self.task = task

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        job = current_job()
        if job is None or not _calls_for_tracer(job):
            return self.function(*args, **kwargs)
        return call_for_tracer(self.task, self.function, *args, **kwargs)


def _calls_for_tracer(job: JobContext) -> bool:
    """Whether the tracer of *job* makes the call, or what it calls: not a body of the user's.

    A body that calls a task gets what Python says, which may be a coroutine.
    """
    return not job.in_body and can_settle()


def call_body(job: JobContext, call: Callable[[], Any]) -> Any:
    """Make *call*, which runs code of the user's."""
    job.in_body = True
    try:
        return call()
    finally:
        job.in_body = False


def call_for_tracer(task: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call *function*, and show the tracer what the pool has decided of a body in it."""
    try:
        return _await_outermost(task, function(*args, **kwargs))
    except BodyStopped as stop:
        if stop.error is None:
            raise  # past the tracer: somebody else reports the outcome
        raise stop.error from None


def _await_outermost(task: Any, value: Any) -> Any:
    """What is around the body has returned *value*: await it, as the body if there was none."""
    if not inspect.isawaitable(value):
        return value
    job = current_job()
    if job is None or job.control is None:
        return settle(value)
    if job.control.has_started:
        return check_returned(task, value)  # raises: its time is over with the body's
    return run_body(job, task, functools.partial(_awaited, value))


def _awaited(value: Any) -> Any:
    return value


def run_body(job: JobContext, task: Any, call: Callable[[], Any]) -> Any:
    """Call the body, await what it gives, and return its value, within its limits.

    Raises ``BodyStopped`` where the pool has decided the outcome.
    """
    control = job.control
    if control is None or control.has_ended:
        # An errback that Celery calls in the failed task's job.
        with ends_copies:
            value = settle(call())
        return check_returned(task, value)
    if control.has_started:
        return check_returned(task, _settle_within(control, call()))
    if job.steps is not None:
        job.steps.before_body(job)
    error: BaseException | None = None
    try:
        return _run_to_end(job, task, control, call)
    except BaseException as exc:
        error = exc
        raise
    finally:
        if job.retries:
            body_ended(job, error)
        del error  # it refers to this frame


def _run_to_end(job: JobContext, task: Any, control: BodyControl, call: Callable[[], Any]) -> Any:
    try:
        return _run_limited(job, task, control, call)
    except StopThread as exc:
        # The second of two limits arrived where the first was being dealt with.
        control.end()
        if job.aborted:
            raise
        raise control.outcome(exc) or exc from exc


def _settle_within(control: BodyControl, value: Any) -> Any:
    """Await *value* for the body that *control* watches, which goes on then: one of ``MAPS``."""
    if not inspect.isawaitable(value):
        return value
    watched = control.watch(value)
    try:
        return settle(watched)
    finally:
        control.come_back()


def _run_limited(job: JobContext, task: Any, control: BodyControl, call: Callable[[], Any]) -> Any:
    if control.clock.limits.soft is not None:
        control.hook = SoftLimitHook.of(task, control.who)
    try:
        try:
            # Within the `try`: from here on a limit may be raised in this thread.
            control.start(None if in_tracer() is not None else threading.get_ident())
            with ends_copies:
                value = call()
                if inspect.isawaitable(value):
                    value = settle(control.watch(value))
        finally:
            keep_loop_running()
            control.end()
    except BaseException as exc:
        # Again: what ends a thread's body may have arrived within that `finally`.
        control.end()
        if job.aborted:
            raise  # past the tracer: an aborted job reports nothing
        error = control.outcome(exc)
        if error is None or error is exc:
            raise
        raise error from (None if isinstance(error, SoftTimeLimitExceeded) else exc)
    else:
        error = control.outcome(None)
        if error is not None:
            raise error
        return check_returned(task, value)
    finally:
        if control.hook is not None and control.hook.is_running:
            settle(control.hook.stop(control.clock.grace))


def prepare(task: Any) -> RunCall:
    """Prepare *task* for jobs in this process, once; return its wrapped function.

    Its tracer has to be built afterwards: :func:`build_trace`, or Celery's
    ``process_initializer`` for all tasks.
    """
    follow_jobs(task)
    name = body_attribute(task)
    mark_task(task)
    run = RunCall(with_models(getattr(task, name), is_async), task)
    setattr(task, name, run)
    if not _settle_custom_call(type(task)):
        task.run = OutermostCall(task.run, task)
    task.retry = RetryAfterBody(task.retry, task)
    for handler in HANDLERS:
        if getattr(type(task), handler) is not getattr(BaseTask, handler):
            setattr(task, handler, HandlerCall(getattr(task, handler)))
    # The option `backend` hides the property of that name, and `_backend` tells nothing.
    backend = task.backend
    if backend is not task.app.backend and not isinstance(backend, OffloadedBackend):
        task.backend = OffloadedBackend.of_task(backend)
    return run


def build_trace(app: Any, task: Any) -> None:
    """Build the tracer of a prepared *task* as Celery would.

    ``build_tracer`` is looked up at each call, so that tools which replace it
    (Sentry) are heard.
    """
    task.__trace__ = trace.build_tracer(task.name, task, app.loader, gethostname(), app=app)


def _settle_custom_call(cls: type) -> bool:
    """Make an overridden ``__call__`` of *cls* the outermost call; False if there is none."""
    call = custom_call(cls)
    if call is None:
        return False
    if not hasattr(call, "_celery_asyncpool"):
        base = next(base for base in cls.__mro__ if "__call__" in base.__dict__)
        setattr(base, "__call__", _outermost_method(call, cls))  # noqa: B010
    return True


def _outermost_method(method: Callable[..., Any], cls: type) -> Callable[..., Any]:
    # Else its `self.run` is the body, and it gets the value of that.
    is_body = is_async(method) or runs_a_loop(method, cls)

    @functools.wraps(method)
    def __call__(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        job = current_job()
        call = functools.partial(method, self, *args, **kwargs)
        if job is not None and not _calls_for_tracer(job):
            return call()
        if is_body and job is not None:
            return call_for_tracer(
                self, run_body, job, self, functools.partial(call_body, job, call)
            )
        return call_for_tracer(self, call)

    __call__._celery_asyncpool = True  # type: ignore[attr-defined]
    return __call__
