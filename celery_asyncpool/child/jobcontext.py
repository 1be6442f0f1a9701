"""Which job the running code belongs to.

Celery keeps ``current_task`` and ``task.request`` in stacks that are keyed by
greenlet or thread. Here one thread runs many jobs, so the key is a context
variable: it follows the job through its tracer, its body, the asyncio tasks
that the body starts, and ``asyncio.to_thread``.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery._state import _task_stack  # type: ignore[attr-defined]
from celery.utils.threads import get_ident

if TYPE_CHECKING:
    from .cancel import BodyControl
    from .django_threads import JobExecutor
    from .looptwin import LoopTwin
    from .retries import PendingRetry
    from .steps import StepControl, Steps
    from .stepthreads import StepThread

__all__ = [
    "JobContext",
    "LoopSettings",
    "current_job",
    "enter_job",
    "follow_jobs",
    "follow_task_stack",
    "job_entered",
    "job_of_task",
]


@dataclass(slots=True)
class LoopSettings:
    """What a job has set of the event loop, for itself; see :mod:`.loop`."""

    task_factory: Callable[..., Any] | None = None
    #: Whether it has: None means asyncio's own tasks.
    has_task_factory: bool = False
    executor: Any = None
    exception_handler: Callable[..., Any] | None = None


class JobContext:
    """What the child knows of one running job; its identity is the stacks' key."""

    __slots__ = (
        "aborted",
        "control",
        "in_body",
        "job_id",
        "loop_settings",
        "orm",
        "payload",
        "retries",
        "step",
        "steps",
        "terminating",
        "thread",
        "twin",
        "who",
    )

    def __init__(self, job_id: int, payload: bytes | None = None) -> None:
        self.job_id = job_id
        #: What is to be called; None once it has begun.
        self.payload = payload
        #: The task's name and id, for the log.
        self.who = "?"
        #: Starts, times and ends the job's body; see :mod:`.cancel`.
        self.control: BodyControl | None = None
        #: Runs its handlers and receivers; None outside of worker processes.
        self.steps: Steps | None = None
        #: The one that runs now.
        self.step: StepControl | None = None
        #: The thread that it has borrowed for those.
        self.thread: StepThread | None = None
        #: Where its thread's awaitables are awaited; None: it had none.
        self.twin: LoopTwin | None = None
        #: Where it uses Django's ORM; None without Django.
        self.orm: JobExecutor | None = None
        #: Somebody has asked for its end, perhaps before it has begun.
        self.terminating = False
        #: The process goes away: end without a result, the broker or parent decides.
        self.aborted = False
        #: The task's own function is being called (not: awaited) right now.
        self.in_body = False
        #: What it has set of the loop; None: nothing.
        self.loop_settings: LoopSettings | None = None
        #: The next attempts that it asks for; see :mod:`.retries`.
        self.retries: list[PendingRetry] = []


_current_job: ContextVar[JobContext | None] = ContextVar("celery_asyncpool_job", default=None)


def current_job() -> JobContext | None:
    """Return the job that the calling code belongs to, None outside of jobs."""
    return _current_job.get()


def enter_job(job: JobContext) -> None:
    """The current context belongs to *job* from here on."""
    _current_job.set(job)


@contextmanager
def job_entered(job: JobContext) -> Iterator[None]:
    """The current context belongs to *job* within the block."""
    token = _current_job.set(job)
    try:
        yield
    finally:
        _current_job.reset(token)


def job_of_task(task: asyncio.Task[Any] | None) -> JobContext | None:
    """Return the job for which *task* was started; callable from any thread."""
    context = _context_of(task) if task is not None else None
    return context.get(_current_job) if context is not None else None


def _context_of(task: asyncio.Task[Any]) -> Context | None:
    """The context of *task*; None where it does not tell."""
    if hasattr(task, "get_context"):
        return task.get_context()  # type: ignore[no-any-return]
    # Python 3.11 shows it to the garbage collector only, as the first of what
    # a task refers to. A task factory that kept a record of all tasks could be
    # replaced by anybody, and would cost something for each of them.
    own = getattr(task, "_context", None)  # a task that is written in Python
    if own is not None:
        return own  # type: ignore[no-any-return]
    return next((r for r in gc.get_referents(task) if isinstance(r, Context)), None)


def _ident() -> Hashable:
    """Key of the calling code in Celery's stacks."""
    return _current_job.get() or get_ident()


def follow_task_stack() -> None:
    """Make ``celery.current_task`` follow jobs, in this process."""
    _task_stack.__ident_func__ = _ident


def follow_jobs(task: Any) -> None:
    """Make ``task.request`` follow jobs, in this process."""
    task.request_stack.__ident_func__ = _ident
