"""Retries: the next attempt leaves when this one is over.

``Task.retry`` publishes where it is called. Here that would block the loop, and
the next attempt could begin beside this one. So all that ``retry`` does is done
but for the message, which waits in the job:

    retry() ──message──> job.retries ──body_ended()──> one or none ──send_retry()──> broker
                                      (its outcome)             (the tracer is through)

``retry`` may be called many times in one attempt, by many asyncio tasks and
threads of a body: there is one next attempt, or none.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback  # type: ignore[attr-defined]
from celery import states
from celery._state import _task_stack  # type: ignore[attr-defined]
from celery.app.task import Task as BaseTask
from celery.app.trace import TraceInfo, task_has_custom
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.log import get_logger
from kombu import serialization

from ..core.timelimits import BodyState, Verdict
from .cancel import BodyStopped
from .jobcontext import JobContext, current_job
from .softhook import in_hook
from .trace import can_settle, on_loop_thread

__all__ = [
    "RetryAfterBody",
    "SendTask",
    "body_ended",
    "defer_retries",
    "deferred",
    "send_retry",
    "undo_defer_retries",
]

logger = get_logger(__name__)

#: Options with which a message can only be sent at once: they may be closed later.
CONNECTIONS = ("producer", "publisher", "connection")


class PendingRetry:
    """One call of ``retry``, and the message that it would have sent."""

    def __init__(self, task: Any) -> None:
        self.task = task
        self.request = task.request
        #: The Retry that the call has raised or returned.
        self.reason: Any = None
        #: Whether it was raised: then a body that ends with an error does not retry.
        self.is_raised = False
        self._send: Callable[[], Any] | None = None
        #: What the message's receivers and tools see, as if it was sent by the call.
        self._context: Context | None = None

    def __repr__(self) -> str:
        return f"<PendingRetry of {self.who}>"

    @property
    def who(self) -> str:
        """The task's name and id, for the log."""
        return f"{self.task.name}[{self.request.id}]"

    @property
    def has_message(self) -> bool:
        """Whether there is something to publish."""
        return self._send is not None

    def wants(self, options: dict[str, Any]) -> bool:
        """Whether a message with *options* is the next attempt, not another task."""
        return options.get("task_id") == self.request.id and not any(
            options.get(name) for name in CONNECTIONS
        )

    def take(self, app: Any, args: Any, options: dict[str, Any]) -> Any:
        """Keep the message; return what ``app.send_task`` returns for it.

        Raises ``EncodeError`` for arguments that cannot be sent.
        """
        args = _as_they_are(app, args, options)
        result = (options.get("result_cls") or app.AsyncResult)(self.request.id)
        result.ignored = options.get("ignore_result")
        # A task is no child of itself: who walks through children would never end.
        options = {**options, "add_to_parent": False}
        self._send = functools.partial(app.send_task, *args, **options)
        self._context = copy_context()
        self._context.run(_call.set, None)
        return result

    def publish(self) -> None:
        """Send the message. To the code that is called for it the task is the current one."""
        assert self._send is not None
        assert self._context is not None
        self._context.run(self._as_current, self._send)

    def fail(self, exc: Exception) -> ExceptionInfo:
        """The message could not be sent: the task has failed, with *exc*."""
        exc.add_note("The task was to be retried, and its next attempt could not be published.")
        einfo: ExceptionInfo = self._as_current(self._report, exc)
        return einfo

    def _report(self, exc: Exception) -> ExceptionInfo:
        task, request = self.task, self.request
        try:
            raise exc
        except Exception:
            einfo: ExceptionInfo = TraceInfo(states.FAILURE, exc).handle_error_state(task, request)
        if task_has_custom(task, "after_return"):
            task.after_return(states.FAILURE, exc, request.id, request.args, request.kwargs, None)
        return einfo

    def _as_current(self, function: Callable[..., Any], *args: Any) -> Any:
        _task_stack.push(self.task)
        self.task.request_stack.push(self.request)
        try:
            return function(*args)
        finally:
            self.task.request_stack.pop()
            _task_stack.pop()


#: The call of ``retry`` that the running code belongs to.
_call: ContextVar[PendingRetry | None] = ContextVar("celery_asyncpool_retry", default=None)


def _as_they_are(app: Any, args: Any, options: dict[str, Any]) -> Any:
    """*args* of ``send_task``; the body may change what it has given, and goes on to use."""
    serializer = options.get("serializer") or app.conf.task_serializer
    content_type, encoding, data = serialization.dumps(args[1:3], serializer)
    copies = serialization.loads(data, content_type, encoding, accept=[content_type])
    return *args[:1], *copies, *args[3:]


class RetryAfterBody:
    """``task.retry`` whose message waits until the tracer of this attempt is through.

    A *retry* of a custom class, too, and a custom ``apply_async`` under it: they
    get the result that they would get, and where they raise something else than
    Retry, nothing is sent.
    """

    def __init__(self, retry: Callable[..., Any], task: Any) -> None:
        functools.update_wrapper(self, retry)
        self.retry = retry
        self.task = task

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        job = current_job()
        if job is None:
            return self.retry(*args, **kwargs)
        if in_hook():
            raise RuntimeError("on_soft_limit cannot retry its task, whose body goes on")
        pending = PendingRetry(self.task)
        try:
            pending.reason = self._retry(pending, *args, **kwargs)
        except Retry as reason:
            pending.reason, pending.is_raised = reason, True
            _keep(job, pending)
            raise
        _keep(job, pending)
        return pending.reason

    def _retry(self, pending: PendingRetry, /, *args: Any, **kwargs: Any) -> Any:
        token = _call.set(pending)
        try:
            return self.retry(*args, **kwargs)
        finally:
            _call.reset(token)


def defer_retries() -> bool:
    """Let Celery's own ``Task.retry`` wait, too, in this process; False: it did already.

    Not all calls come by ``task.retry``: any method of a custom class may call
    ``super().retry``, and an ``async def retry`` does so when it is awaited.
    """
    if hasattr(BaseTask.retry, "_celery_asyncpool"):
        return False
    BaseTask.retry = deferred(BaseTask.retry)  # type: ignore[method-assign]
    return True


def undo_defer_retries() -> None:
    """Undo :func:`defer_retries`."""
    BaseTask.retry = BaseTask.retry._celery_asyncpool  # type: ignore[method-assign,attr-defined]


def deferred(method: Callable[..., Any]) -> Any:
    """Return *method*, the ``retry`` of a class, as one whose message waits."""

    @functools.wraps(method)
    def retry(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        if _call.get() is not None:
            return method(self, *args, **kwargs)  # for the `task.retry` that is under way
        return RetryAfterBody(functools.partial(method, self), self)(*args, **kwargs)

    retry._celery_asyncpool = method  # type: ignore[attr-defined]
    return retry


class SendTask:
    """``app.send_task`` that keeps the message of a retry, and sends all others.

    Arguments:
        app: the app.
        send: its ``send_task``.
        call: calls a function, which may block, with its arguments.
    """

    def __init__(self, app: Any, send: Callable[..., Any], call: Callable[..., Any]) -> None:
        functools.update_wrapper(self, send)
        self.app = app
        self.send = send
        self.call = call

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        pending = _call.get()
        if pending is not None and pending.wants(kwargs):
            return pending.take(self.app, args, kwargs)
        return self.call(self.send, *args, **kwargs)


def _keep(job: JobContext, pending: PendingRetry) -> None:
    if not pending.has_message:
        return  # an eager or a direct call
    if not _is_left_behind(job):
        job.retries.append(pending)
    elif not job.retries:
        logger.warning(
            "%s: what its body has left behind asks for a retry, which comes too late; "
            "await all children before the body ends",
            pending.who,
        )


def _is_left_behind(job: JobContext) -> bool:
    """Whether the calling code is a child of a body that has ended.

    Handlers and wrappers around the body are called after it, too: by the tracer,
    or awaited for it.
    """
    control = job.control
    if control is None or control.clock.state not in (BodyState.ENDED, BodyState.DETACHED):
        return False
    if not on_loop_thread():
        return not can_settle()
    return not control.in_thread and asyncio.current_task() is not control.task


def body_ended(job: JobContext, error: BaseException | None) -> None:
    """Decide which of the retries that *job*'s body has asked for is to come, if any.

    *error* is what the body has ended with. It is the outcome where it is an error:
    then only a retry that was not raised (``throw=False``) comes, since that one
    was never meant to be the outcome. The pool's own verdicts and a Reject let none
    come.
    """
    control = job.control
    if job.aborted or (control is not None and control.clock.verdict is not Verdict.NONE):
        job.retries.clear()
    elif isinstance(error, (Reject, BodyStopped)):
        job.retries.clear()
    elif isinstance(error, Retry):
        job.retries.sort(key=lambda pending: pending.reason is error)
    elif error is not None and not isinstance(error, Ignore):
        job.retries[:] = [pending for pending in job.retries if not pending.is_raised]
    del job.retries[:-1]


def send_retry(job: JobContext, outcome: Any, publish: Callable[[Callable[[], Any]], Any]) -> Any:
    """Publish the next attempt of *job*, whose tracer has returned *outcome*.

    *publish* calls a function that may block. Returns the outcome to report: where
    the message cannot be sent, FAILURE in the place of RETRY. Any other outcome
    stays, since others know of it (a chord, links); then the log tells.
    """
    pending = job.retries[-1]
    job.retries.clear()  # what the body has left behind may keep the job
    if job.aborted and pending.task.acks_late:
        raise BodyStopped(None)  # this attempt is delivered again: no next one beside it
    try:
        publish(pending.publish)
    except Exception as exc:
        if _is_retry(outcome):
            return 1, pending.fail(exc), outcome[2]
        logger.error(
            "%s: its next attempt, which its body asked for, could not be published: %r",
            pending.who,
            exc,
            exc_info=True,
        )
    return outcome


def _is_retry(outcome: Any) -> bool:
    failed, value, _ = outcome
    if not failed:
        return False
    exc = value.exception
    return isinstance(exc.exc if isinstance(exc, ExceptionWithTraceback) else exc, Retry)
