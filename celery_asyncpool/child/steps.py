"""What Celery's tracer calls beside the body: a task's handlers, and receivers of its signals.

Each call is a step. ``async def`` ones are awaited in the job's asyncio task.
Plain ones may block (an ORM, a client, a lock), so they never run on the loop:
a job of a ``def`` task has a thread anyway, and one on the loop borrows a thread
(:mod:`.stepthreads`), in which a step runs in the job's own context: the same
object, not a copy. So a token that was made there can be reset in another step,
and what a step sets, the body sees, and the other way round.

Two threads cannot be in one context at a time. The job's asyncio task is in it
while it makes a step of its own, so the call leaves for the thread one turn
later, and the task waits for it in a future that nobody can cancel.

A step has no time limit. When its job is to end (a revoke) before its body has
started, a step is ended like a body, and the body does not start. After the body,
what has become of it is the job's outcome, and those who are told of it are told to
the end: the step that runs, and each further one, has the grace time, as after a
hard limit of the body. A cold shutdown ends a step at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError as StepCancelled
from contextvars import Context
from typing import Any

import greenlet
from billiard.einfo import ExceptionInfo
from celery import states
from celery.utils.log import get_logger
from celery.utils.saferepr import saferepr

from ..core.timelimits import BodyState, Limits, Verdict
from ..tasktypes import BodyWrapper, is_async
from .cancel import BodyControl, BodyStopped
from .forks import ends_copies
from .jobcontext import JobContext, current_job
from .stepthreads import StepThread, StepThreads
from .threadpool import Outcome
from .trace import call_in_thread, can_settle, in_tracer, settle

__all__ = ["HandlerCall", "StepControl", "Steps", "can_step", "end_job"]

logger = get_logger(__name__)


class HandlerCall(BodyWrapper):
    """A handler of a task, called by its tracer as a step."""

    def __init__(self, handler: Any) -> None:
        super().__init__(handler)
        self.is_async = is_async(handler)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        job = current_job()
        if job is None or not can_step(job):
            return self.function(*args, **kwargs)
        assert job.steps is not None
        call = functools.partial(self.function, *args, **kwargs)
        return job.steps.run(job, self.function.__name__, call, self.is_async)


def can_step(job: JobContext) -> bool:
    """Whether it is the tracer of *job* that calls, not what it has called."""
    return job.steps is not None and job.step is None and not job.in_body and can_settle()


def end_job(job: JobContext) -> None:
    """On the loop: end what runs of *job*, which has started; nothing, when it is too late."""
    job.terminating = True
    control = job.control
    if control is None:
        return
    if job.step is None:
        control.terminate()
        return
    if control.clock.state is BodyState.WAITING:
        control.clock.terminate(time.monotonic())  # the body must not start any more
        job.step.terminate()
    elif job.aborted:
        job.step.terminate()
    else:
        control.terminate()  # tells that there is no body to end
        job.step.limit_from_now()


class StepControl(BodyControl):
    """Starts, times and ends one step, as if it was a body."""

    def limit_from_now(self) -> None:
        """On the loop: it has the grace time from now on, if it had more before."""
        with self._lock:
            self.clock.limit(time.monotonic(), self.clock.grace)
        self._arm()

    def _log_hard_limit(self) -> None:
        logger.error("%s runs on; its time to end is over", self.who)


class Steps:
    """The steps of the jobs of one process.

    Arguments:
        loop: the process's event loop.
        threads: where plain steps run.
        grace: seconds that a step has to end when its job is to end.
        on_cancelled: called, on the loop's thread, with the job's id when a step
            is cancelled.
        on_over: likewise, when a cancelled one has ended.
        on_stuck: likewise, with the verdict, its stack and what has been the outcome
            of the body, when a cancelled one has not ended in time.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        threads: StepThreads,
        grace: float,
        *,
        on_cancelled: Callable[[int], None],
        on_over: Callable[[int], None],
        on_stuck: Callable[[int, Verdict, str, Any], None],
    ) -> None:
        self.threads = threads
        self._loop = loop
        self._grace = grace
        self._on_cancelled = on_cancelled
        self._on_over = on_over
        self._on_stuck = on_stuck

    def run(
        self,
        job: JobContext,
        name: str,
        call: functools.partial[Any],
        awaits: bool,
    ) -> Any:
        """Make *call* for the tracer of *job*; return its value, awaited.

        *awaits*: it is known to give a coroutine, and needs no thread.
        """
        try:
            if in_tracer() is None:
                return self._step(job, name, call, _in_this_thread)
            if not awaits:
                value = self._step(job, name, call, self._in_other_thread)
                if not inspect.isawaitable(value):
                    return value
                call = functools.partial(_same, value, *call.args, **call.keywords)
            return self._step(job, name, call, _on_loop)
        finally:
            del call  # it refers to an exception, perhaps, whose traceback refers to us

    def before_body(self, job: JobContext) -> None:
        """The body of *job* starts: it needs no thread of ours meanwhile."""
        self._give_back(job)
        if job.orm is not None:
            job.orm.on_body()

    def after_job(self, job: JobContext) -> None:
        """The tracer of *job* is through."""
        self._give_back(job)

    def _give_back(self, job: JobContext) -> None:
        if job.thread is not None:
            thread, job.thread = job.thread, None
            self.threads.give_back(thread)

    # One step.

    def _step(
        self,
        job: JobContext,
        name: str,
        call: functools.partial[Any],
        run: Callable[[JobContext, StepControl, Callable[[], Any]], Any],
    ) -> Any:
        step = self._control(job, name, call)
        # What it calls is not for the tracer: the task's own function, other handlers.
        job.step, was_in_body, job.in_body = step, job.in_body, True
        try:
            return run(job, step, call)
        except BaseException as exc:
            if step.clock.verdict is not Verdict.NONE:
                return self._stopped(job, step)
            if isinstance(exc, asyncio.CancelledError):
                # Its own: to the tracer an error is an Exception, asyncio's is none.
                raise StepCancelled(f"{step.who} was cancelled: {exc!r}") from exc
            raise
        finally:
            step.end()
            job.step, job.in_body = None, was_in_body
            if step.clock.limits.hard is not None or step.clock.verdict is not Verdict.NONE:
                self._loop.call_soon_threadsafe(step.close)

    def _control(self, job: JobContext, name: str, call: functools.partial[Any]) -> StepControl:
        control = job.control
        assert control is not None
        is_ending = job.terminating or control.clock.verdict is not Verdict.NONE
        step = StepControl(
            Limits(hard=self._grace if is_ending else None),
            self._grace,
            self._loop,
            f"{name} of {job.who}",
            on_started=_nothing,
            on_cancelled=functools.partial(self._on_cancelled, job.job_id),
            on_limit=_nothing,
            on_over=functools.partial(self._on_over, job.job_id),
            on_stuck=functools.partial(self._tell_stuck, job, name, call),
        )
        if in_tracer() is not None:
            step.task = asyncio.current_task()
        return step

    def _stopped(self, job: JobContext, step: StepControl) -> None:
        """What the tracer gets of a step that was ended from outside."""
        assert job.control is not None
        if not job.control.has_started:
            raise BodyStopped(None) from None  # past the tracer: the body must not start
        logger.warning("%s was ended, as its task was to end; the task's outcome stays", step.who)

    def _tell_stuck(
        self, job: JobContext, name: str, call: functools.partial[Any], _: Verdict, stack: str
    ) -> None:
        assert job.control is not None
        clock = job.control.clock
        outcome = None
        if clock.started_at is not None:
            runtime = time.monotonic() - clock.started_at
            outcome = _outcome(name, call.args, call.keywords, runtime)
        self._on_stuck(job.job_id, Verdict.TERMINATED, stack, outcome)

    # Plain steps of jobs on the loop.

    def _in_other_thread(self, job: JobContext, step: StepControl, call: Callable[[], Any]) -> Any:
        context = greenlet.getcurrent().gr_context
        assert context is not None
        outcome = settle(
            self._wait_for_thread(job, step, functools.partial(_enter, context, call))
        )
        _take_locals(context)
        return outcome.get()

    async def _wait_for_thread(
        self, job: JobContext, step: StepControl, call: Callable[[], Any]
    ) -> Outcome:
        place = await self._place(job)
        done = _Uncancellable(loop=self._loop)
        # In the next turn: this one is in the context that the thread is to enter.
        self._loop.call_soon(place.submit, _work, step, call, place, done)
        outcome = await done
        self._keep_connection(job)
        return outcome

    async def _place(self, job: JobContext) -> Any:
        """The job's thread for Django's ORM if it has one, else one that it borrows."""
        if job.orm is not None and job.orm.has_thread:
            return job.orm
        if job.thread is None:
            assert job.control is not None
            job.thread = await self.threads.lease(is_fresh=not job.control.has_started)
        return job.thread

    def _keep_connection(self, job: JobContext) -> None:
        """What was chosen on a connection before the body holds in the body."""
        thread = job.thread
        assert job.control is not None
        if thread is None or job.orm is None or job.control.has_started:
            return
        if thread.is_used:
            self.threads.keep()
            job.orm.adopt(thread)
            job.thread = None


class _Uncancellable(asyncio.Future[Outcome]):
    """A future whose waiter learns of its cancellation when the future is done."""

    def cancel(self, msg: Any = None) -> bool:
        return False


def _on_loop(job: JobContext, step: StepControl, call: Callable[[], Any]) -> Any:
    try:
        step.start(None)
        with ends_copies:
            return settle(step.watch(call()))
    finally:
        step.end()


def _in_this_thread(job: JobContext, step: StepControl, call: Callable[[], Any]) -> Any:
    """In the thread of a job that has one."""
    try:
        try:
            step.start(threading.get_ident())
            with ends_copies:
                value = call()
                return settle(step.watch(value)) if inspect.isawaitable(value) else value
        finally:
            step.end()
    except BaseException:
        step.end()  # again: what ends it may have arrived within that `finally`
        raise


def _work(step: StepControl, call: Callable[[], Any], place: Any, done: _Uncancellable) -> None:
    """In the borrowed thread."""
    outcome = _call_stoppably(step, call)
    if isinstance(place, StepThread):
        place.look_for_connections()
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        done.get_loop().call_soon_threadsafe(done.set_result, outcome)


def _call_stoppably(step: StepControl, call: Callable[[], Any]) -> Outcome:
    try:
        try:
            step.start(threading.get_ident())
            with ends_copies:
                return Outcome(call(), None)
        finally:
            step.end()
    except BaseException as exc:
        step.end()  # again: what ends it may have arrived within that `finally`
        return Outcome(None, exc)


def _enter(context: Context, call: Callable[[], Any]) -> Any:
    """Make *call* in *context*, or, where somebody else is in it just now, in a copy."""
    entered = False

    def inside() -> Any:
        nonlocal entered
        entered = True
        _take_locals(context)
        return call_in_thread(call)

    try:
        return context.run(inside)
    except RuntimeError:
        if entered:
            raise
    return context.copy().run(inside)


def _take_locals(context: Context) -> None:
    """Make what asgiref's ``Local`` keeps in *context* visible in this thread.

    Django's translations and caches, say: asgiref shows them to the thread only that
    has set them, and does the same in ``sync_to_async``.
    """
    storage = getattr(sys.modules.get("asgiref.local"), "_Storage", None)
    if storage is None:
        return
    thread = threading.get_ident()
    for variable, value in context.items():
        if type(value) is storage and value.thread_id != thread:
            variable.set(storage(thread, value.data))


def _same(value: Any, /, *args: Any, **kwargs: Any) -> Any:
    return value


def _nothing(*args: Any) -> None:
    """A step's start is nothing that the parent has to know of."""


def _outcome(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], runtime: float) -> Any:
    """What a tracer returns for the outcome that the step *name* was told of; None: for none.

    None for a retry, too: its next attempt has not been published.
    """
    if name in ("on_success", "task_success"):
        return 0, saferepr(kwargs["result"] if kwargs else args[0]), runtime
    if name in ("on_failure", "task_failure"):
        return 1, kwargs["einfo"] if kwargs else args[-1], runtime
    if name in ("after_return", "task_postrun"):
        state = kwargs["state"] if kwargs else args[0]
        value = kwargs["retval"] if kwargs else args[1]
        if state == states.SUCCESS:
            return 0, saferepr(value), runtime
        if state in (states.FAILURE, states.IGNORED, states.REJECTED):
            return 1, ExceptionInfo((type(value), value, value.__traceback__)), runtime
    return None
