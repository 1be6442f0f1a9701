"""Celery's request, with one outcome for each task.

Celery's own ``Request`` announces a termination at once, on the assumption
that the process is killed in the same moment. Here the task may end by itself
before its body can be ended, and only its process knows which came first, so
the request asks, and announces what it is told.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]
from celery import states
from celery.app.trace import task_has_custom
from celery.canvas import Signature
from celery.exceptions import TimeLimitExceeded
from celery.platforms import signals
from celery.signals import task_failure
from celery.utils.imports import symbol_by_name
from celery.utils.log import get_logger
from celery.worker import request
from celery.worker import state as worker_state

from .signals import wrap_receivers
from .tasklimits import NO_TIME_LIMITS, call_time_limits

__all__ = [
    "Request",
    "fail_for_good",
    "finish_async_errbacks",
    "finish_async_receivers",
    "has_own_crash_budget",
    "request_class",
    "use_request",
]

logger = get_logger(__name__)

#: The ``timelimit`` of a message without one, as Celery sends it.
_NONE_GIVEN = [None, None]


class Request(request.Request):
    """Reports a terminated or timed-out task once, when its fate is known.

    A class that a task has chosen comes before it (:func:`request_class`): what
    its methods call with ``super()`` are those here.
    """

    @property
    def time_limits(self) -> Any:
        """The limits of the message, hard and soft; what cannot be a limit is left out."""
        return self.__dict__.get("time_limits", NO_TIME_LIMITS)

    @time_limits.setter
    def time_limits(self, value: Any) -> None:
        limits = NO_TIME_LIMITS
        if value != _NONE_GIVEN:
            limits = call_time_limits(value, f"{self.name}[{self.id}]")
            # The task's process reads them there, for the next attempt.
            headers: Any = self.request_dict
            headers["timelimit"] = list(limits)
        self.__dict__["time_limits"] = limits

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End the task's body, whatever *signal* says; then it is revoked.

        A task that waits for a slot is found revoked when it gets one.
        """
        reference: Any = getattr(self, "_apply_result", None)  # weak
        result = reference() if reference is not None else None
        if result is not None:
            result.terminate(signals.signum(signal or "SIGTERM"))

    def cancel(self, pool: Any, *args: Any, **kwargs: Any) -> None:
        """As Celery's, but not for a task that has ended meanwhile.

        Celery cancels at the end of a soft shutdown, in which it sleeps and
        hears nothing: what has ended then is settled, and must not run again.
        """
        cancel = functools.partial(super().cancel, pool, *args, **kwargs)
        pool.when_caught_up(functools.partial(self._cancel_if_active, cancel))

    def _cancel_if_active(self, cancel: Callable[[], Any]) -> None:
        if self in worker_state.active_requests:
            cancel()

    def on_timeout(self, soft: bool, timeout: Any) -> None:
        """A limit is over: told once for each, for classes that want to know.

        There is nothing to do here. The process that has the body has logged it,
        and what becomes of the task is told by its end.
        """

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> Any:
        """As Celery's; of a limit that the worker itself enforced, it tells the handlers."""
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
        exc = exc_info.exception
        if isinstance(exc, ExceptionWithTraceback):
            exc = exc.exc
        if isinstance(exc, TimeLimitExceeded) and not return_ok:
            # The process could not: the body refused to end or blocked it.
            self._tell_handlers(exc, exc_info)

    def _tell_handlers(self, exc: Exception, exc_info: Any) -> None:
        task: Any = self.task
        args = self.args, self.kwargs
        if task_has_custom(task, "on_failure"):
            _finish(task.on_failure(exc, self.id, *args, exc_info))
        if task_has_custom(task, "after_return"):
            _finish(task.after_return(states.FAILURE, exc, self.id, *args, None))


def has_own_crash_budget(celery_request: Any) -> bool:
    """Whether the task counts its crashes itself, as retries (Celery 5.7)."""
    task = celery_request.task
    return bool(getattr(task, "retry_on_worker_lost", False)) and task.max_retries is not None


def fail_for_good(celery_request: Any, einfo: Any) -> None:
    """The task of *celery_request* has taken down its process too often: it will not run again.

    A message that is still unacknowledged is rejected without requeue, so that
    a dead-letter exchange gets it. Celery's own ``on_failure`` would have it
    delivered again (``reject_on_worker_lost``).
    """
    task, task_id = celery_request.task, celery_request.id
    exc = (
        einfo.exception.exc
        if isinstance(einfo.exception, ExceptionWithTraceback)
        else (einfo.exception)
    )
    worker_state.task_ready(celery_request)
    celery_request.reject(requeue=False)
    task.backend.mark_as_failure(
        task_id,
        exc,
        traceback=einfo.traceback,
        request=celery_request._context,
        store_result=celery_request.store_errors,
    )
    task_failure.send(
        sender=task,
        task_id=task_id,
        exception=exc,
        args=celery_request.args,
        kwargs=celery_request.kwargs,
        traceback=einfo.traceback,
        einfo=einfo,
    )
    celery_request.send_event("task-failed", exception=repr(exc), traceback=einfo.traceback)
    logger.error("Task %s[%s] has failed for good: %s", task.name, task_id, exc)


def use_request(app: Any) -> None:
    """Let all tasks of *app* use :class:`Request`, below a class of their own."""
    for task in app.tasks.values():
        task.Request = request_class(symbol_by_name(task.Request))


@functools.cache
def request_class(chosen: type) -> type:
    """Return the class for the requests of a task that has *chosen* one, by default Celery's.

    Its methods are called as in other pools. What is no subclass of Celery's is
    left as it is.
    """
    if chosen is request.Request:
        return Request
    if not issubclass(chosen, request.Request) or issubclass(chosen, Request):
        return chosen
    names = {"__module__": chosen.__module__, "__doc__": chosen.__doc__}
    return type(chosen.__name__, (chosen, Request), names)


def finish_async_errbacks() -> None:
    """Let this process, not its forks, run async errbacks of the old form to their ends.

    Celery calls one with (request, exc, traceback) where it reports a failure:
    here, when the task's process is gone. Harmless when repeated.
    """
    if not hasattr(Signature.__call__, "__wrapped__"):
        setattr(Signature, "__call__", _finished_here(Signature.__call__, os.getpid()))  # noqa: B010


def _finished_here(call: Any, pid: int) -> Any:
    @functools.wraps(call)
    def __call__(signature: Any, /, *args: Any, **kwargs: Any) -> Any:
        value = call(signature, *args, **kwargs)
        is_here = os.getpid() == pid and asyncio._get_running_loop() is None
        return _finish(value) if is_here else value

    return __call__


def finish_async_receivers() -> None:
    """Let this process run async receivers of ``task_failure`` to their ends.

    It sends that where a task's process could not. Harmless when repeated; forks
    have ways of their own (:mod:`.child.receivers`).
    """
    wrap_receivers(_FinishedReceivers(os.getpid()))


@dataclass(frozen=True)
class _FinishedReceivers:
    """Receivers that are run to their ends in the process *pid*."""

    pid: int

    def __call__(self, name: str, receivers: list[Any]) -> list[Any]:
        if os.getpid() != self.pid or asyncio._get_running_loop() is not None:
            return receivers
        return [_FinishedReceiver(receiver) for receiver in receivers]


class _FinishedReceiver:
    """A receiver whose awaitable is run to its end."""

    def __init__(self, receiver: Any) -> None:
        self._receiver = receiver

    def __repr__(self) -> str:
        return repr(self._receiver)  # for Celery's log

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return _finish(self._receiver(*args, **kwargs))


def _finish(value: Any) -> Any:
    """Run an async handler to its end; the worker's main process has no loop."""
    return asyncio.run(_await(value)) if inspect.isawaitable(value) else value


async def _await(awaitable: Any) -> Any:
    return await awaitable
