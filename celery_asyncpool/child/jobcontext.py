"""Which job the running code belongs to.

Celery keeps ``current_task`` and ``task.request`` in stacks that are keyed by
greenlet or thread. Here one thread runs many jobs, so the key is a context
variable: it follows the job through its tracer, its body, the asyncio tasks
that the body starts, and ``asyncio.to_thread``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from celery._state import _task_stack  # type: ignore[attr-defined]
from celery.utils.threads import get_ident

if TYPE_CHECKING:
    from .cancel import BodyControl

__all__ = [
    "JobContext",
    "current_job",
    "enter_job",
    "follow_jobs",
    "follow_task_stack",
    "job_of_task",
    "remember_tasks",
]


class JobContext:
    """What the child knows of one running job; its identity is the stacks' key."""

    __slots__ = (
        "aborted",
        "control",
        "deferred",
        "in_body",
        "job_id",
        "retry_is_stored",
        "retrying_thread",
        "terminating",
        "who",
    )

    def __init__(self, job_id: int) -> None:
        self.job_id = job_id
        #: The task's name and id, for the log.
        self.who = "?"
        #: Starts, times and ends the job's body; see :mod:`.cancel`.
        self.control: BodyControl | None = None
        #: Somebody has asked for its end, perhaps before it has begun.
        self.terminating = False
        #: The process goes away: end without a result, the broker or parent decides.
        self.aborted = False
        #: The task's own function is being called (not: awaited) right now.
        self.in_body = False
        #: The thread in which ``self.retry`` runs right now: publish later, not now.
        self.retrying_thread: int | None = None
        #: The backend has RETRY already, which the tracer is about to store.
        self.retry_is_stored = False
        #: Arguments of the ``send_task`` calls that wait for the body's end.
        self.deferred: list[tuple[tuple[Any, ...], dict[str, Any]]] = []


_current_job: ContextVar[JobContext | None] = ContextVar("celery_asyncpool_job", default=None)


def current_job() -> JobContext | None:
    """Return the job that the calling code belongs to, None outside of jobs."""
    return _current_job.get()


def enter_job(job: JobContext) -> None:
    """The current context belongs to *job* from here on."""
    _current_job.set(job)


#: The jobs of asyncio tasks, where Python does not tell a task's context (3.11).
_jobs_of_tasks: WeakKeyDictionary[asyncio.Task[Any], JobContext] = WeakKeyDictionary()


def remember_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Make :func:`job_of_task` work for the tasks that bodies start on *loop*."""
    if not hasattr(asyncio.Task, "get_context"):
        loop.set_task_factory(_new_task)


def job_of_task(task: asyncio.Task[Any] | None) -> JobContext | None:
    """Return the job for which *task* was started; callable from any thread."""
    if task is None:
        return None
    if hasattr(task, "get_context"):
        return task.get_context().get(_current_job)  # type: ignore[no-any-return]
    return _jobs_of_tasks.get(task)


def _new_task(
    loop: asyncio.AbstractEventLoop, coro: Any, context: Context | None = None
) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, context=context)
    job = _current_job.get() if context is None else context.get(_current_job)
    if job is not None:
        _jobs_of_tasks[task] = job
    return task


def _ident() -> Hashable:
    """Key of the calling code in Celery's stacks."""
    return _current_job.get() or get_ident()


def follow_task_stack() -> None:
    """Make ``celery.current_task`` follow jobs, in this process."""
    _task_stack.__ident_func__ = _ident


def follow_jobs(task: Any) -> None:
    """Make ``task.request`` follow jobs, in this process."""
    task.request_stack.__ident_func__ = _ident
