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

from ..tasktypes import HANDLERS, body_attribute, has_async_body
from .cancel import BodyControl, BodyStopped, StopThread
from .jobcontext import JobContext, current_job, follow_jobs
from .offload import OffloadedBackend
from .retries import RetryAfterBody, body_ended
from .softhook import SoftLimitHook
from .trace import can_settle, in_tracer, settle

__all__ = ["RunCall", "build_trace", "prepare"]


class SettledCall:
    """A function whose awaitable result the tracer gets awaited."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)  # copies its attributes, ours come last
        self.function = function

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return settle(self.function(*args, **kwargs))


class RunCall(SettledCall):
    """The task's own function: the body of its jobs."""

    def __init__(self, function: Callable[..., Any], task: Any) -> None:
        super().__init__(function)
        self.task = task
        #: Whether the task's jobs need no thread: the loop awaits their bodies.
        self.is_async = has_async_body(task)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        job = current_job()
        if job is None or job.in_body or not can_settle():
            # Not the tracer: somebody calls the task directly.
            return self.function(*args, **kwargs)
        return run_body(job, self.task, functools.partial(self._call, job, args, kwargs))

    def _call(self, job: JobContext, args: Any, kwargs: Any) -> Any:
        job.in_body = True
        try:
            value = self.function(*args, **kwargs)
        finally:
            job.in_body = False
        if inspect.isgenerator(value) or inspect.isasyncgen(value):
            raise TypeError(
                f"task {self.task.name} returned a generator, which nobody would run; "
                "return a value, or a list of what it yields"
            )
        if inspect.isawaitable(value):
            # A plain function that gives an awaitable: its later jobs need no
            # thread (a decorator without functools.wraps hides what it wraps).
            self.is_async = True
        return value


class OutermostCall(SettledCall):
    """What the tracer calls instead of the task's ``run``."""

    def __init__(self, function: Callable[..., Any], task: Any) -> None:
        super().__init__(function)
        self.task = task

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return call_for_tracer(self.task, self.function, *args, **kwargs)


def call_for_tracer(task: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call *function*, and show the tracer what the pool has decided of a body in it."""
    try:
        return settle(function(*args, **kwargs))
    except BodyStopped as stop:
        if stop.error is None:
            raise  # past the tracer: somebody else reports the outcome
        raise stop.error from None


def run_body(job: JobContext, task: Any, call: Callable[[], Any]) -> Any:
    """Call the body, await what it gives, and return its value, within its limits.

    Raises ``BodyStopped`` where the pool has decided the outcome.
    """
    control = job.control
    if control is None or control.has_started:
        return settle(call())  # an errback that Celery calls in the failed task's job
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


def _run_limited(job: JobContext, task: Any, control: BodyControl, call: Callable[[], Any]) -> Any:
    if control.clock.limits.soft is not None:
        control.hook = SoftLimitHook.of(task, control.who)
    try:
        try:
            # Within the `try`: from here on a limit may be raised in this thread.
            control.start(None if in_tracer() is not None else threading.get_ident())
            value = call()
            if inspect.isawaitable(value):
                value = settle(control.watch(value))
        finally:
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
        return value
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
    run = RunCall(getattr(task, name), task)
    setattr(task, name, run)
    if not _settle_custom_call(type(task)):
        task.run = OutermostCall(task.run, task)
    task.retry = RetryAfterBody(task.retry, task)
    for handler in HANDLERS:
        if getattr(type(task), handler) is not getattr(BaseTask, handler):
            setattr(task, handler, SettledCall(getattr(task, handler)))
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
    for base in cls.__mro__:
        if base is BaseTask:
            return False
        call = base.__dict__.get("__call__")
        if call is not None:
            if not hasattr(call, "_celery_asyncpool"):
                setattr(base, "__call__", _outermost_method(call))  # noqa: B010
            return True
    return False


def _outermost_method(method: Callable[..., Any]) -> Callable[..., Any]:
    is_body = inspect.iscoroutinefunction(inspect.unwrap(method))

    @functools.wraps(method)
    def __call__(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        job = current_job()
        if is_body and job is not None and can_settle():
            call = functools.partial(method, self, *args, **kwargs)
            return call_for_tracer(self, run_body, job, self, call)
        return call_for_tracer(self, method, self, *args, **kwargs)

    __call__._celery_asyncpool = True  # type: ignore[attr-defined]
    return __call__
