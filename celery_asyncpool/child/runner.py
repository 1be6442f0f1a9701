"""Message -> asyncio task -> message.

A job is started only when its ACK has been taken by the kernel: the parent may
give a job without an ACK to another process, and never one with an ACK. All
jobs of one read are accepted with one write, and all results of one turn of
the loop are written with one.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from asyncio import Task  # as it is now: a body may put another in its place
from collections import deque
from contextvars import copy_context
from typing import Any

from billiard.common import human_status
from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from billiard.pool import MaybeEncodingError
from celery.exceptions import Terminated, TimeLimitExceeded
from celery.utils.log import get_logger
from celery.utils.serialization import get_pickleable_exception

from ..calls import is_traced, name_of_call
from ..core import protocol
from ..core.protocol import Kind
from ..core.timelimits import Limits, Verdict
from ..pipe import Pipe
from . import tasks
from .cancel import BodyControl, BodyStopped
from .django_threads import DjangoThreads
from .functions import call_function
from .jobcontext import JobContext, enter_job
from .offload import offload, redis_counters
from .parent_signals import ParentSignals
from .retries import send_retry
from .steps import Steps, end_job
from .stepthreads import StepThreads
from .tasks import RunCall
from .threads import BodyThreads
from .trace import drive
from .watchdog import Watchdog

__all__ = ["Runner", "as_celery_expects", "share_keys"]

logger = get_logger(__name__)

#: Seconds after which the parent hears of counters that change all the time.
REPORT_SECONDS = 1.0


class Runner:
    """Runs jobs on *loop* for the parent at the other end of *pipe*.

    Arguments:
        app: the Celery app.
        runs: the prepared tasks' functions, by task name.
        loop: the process's event loop.
        pipe: this process's end of the socketpair.
        threads: where the jobs of plain ``def`` tasks run.
        grace: seconds that a cancelled body has to end.
    """

    def __init__(
        self,
        app: Any,
        runs: dict[str, RunCall],
        loop: asyncio.AbstractEventLoop,
        pipe: Pipe,
        threads: BodyThreads,
        grace: float,
    ) -> None:
        self.app = app
        self.runs = runs
        self.loop = loop
        self.pipe = pipe
        self.threads = threads
        self.grace = grace
        #: Told when there is something to watch; see :mod:`.watchdog`.
        self.watchdog: Watchdog | None = None
        #: Where jobs use Django's ORM; see :mod:`.django_threads`.
        self.django: DjangoThreads | None = None
        #: Where plain handlers and receivers of jobs on the loop run.
        self.step_threads = StepThreads(threads.limit)
        self.steps = Steps(
            loop,
            self.step_threads,
            grace,
            on_cancelled=functools.partial(self._send_now, Kind.CANCELLED),
            on_over=functools.partial(self._send_now, Kind.OVER),
            on_stuck=self._on_stuck,
        )
        #: Looks after handlers that bodies have set; see :mod:`.parent_signals`.
        self.signals: ParentSignals | None = None
        self._running: dict[int, tuple[JobContext, asyncio.Task[bytes]]] = {}
        #: Accepted jobs and how many bytes must have left before each may start.
        self._accepting: deque[tuple[int, JobContext]] = deque()
        #: What all jobs' contexts begin as: no job sees what another has set.
        self._context = copy_context()
        self._flush_scheduled = False
        self._writing = False
        self._draining = False
        #: The parent wants us to end all bodies and go.
        self.aborting = False
        self._reported: dict[str, float] = {}
        self._reported_counters: dict[str, float] = {}
        self._report_timer: asyncio.TimerHandle | None = None
        #: Done when this process has nothing more to do: drained, or left alone.
        self.finished: asyncio.Future[None] = loop.create_future()

    def __repr__(self) -> str:
        state = ", draining" if self._draining else ""
        return f"<Runner {len(self._running)} running{state}>"

    def start(self) -> None:
        """Tell the parent that this process is up, and take jobs."""
        self.loop.add_reader(self.pipe.fileno(), self._on_readable)
        self._send(protocol.encode(Kind.WORKER_UP))

    @property
    def lost_parent(self) -> bool:
        """Whether the parent has gone, or has closed its end to be rid of us."""
        return self.pipe.eof

    def job_of(self, task: asyncio.Task[Any] | None) -> JobContext | None:
        """The job whose own asyncio task is *task*."""
        for job, own in list(self._running.values()):
            if own is task:
                return job
        return None

    @property
    def is_busy(self) -> bool:
        """Whether any job is running."""
        return bool(self._running)

    def abort_all(self) -> list[asyncio.Task[bytes]]:
        """End all jobs, which then report nothing; return what to wait for.

        A body that is being cancelled already is not disturbed in its cleaning up.
        """
        running = list(self._running.values())
        for job, task in running:
            job.aborted = True
            if job.control is None:
                task.cancel()
            elif not job.terminating:
                end_job(job)
        return [task for _, task in running]

    # From the parent.

    def _on_readable(self) -> None:
        try:
            messages = self.pipe.read()
        except protocol.ProtocolError as exc:
            logger.critical("the pipe from the worker is broken, giving up: %s", exc)
            self.lose_parent()
            return
        now = time.monotonic()
        for message in messages:
            if message.kind is Kind.TASK:
                self.pipe.write(protocol.encode_time(Kind.ACK, message.job_id, now))
                job = JobContext(message.job_id, message.payload)
                self._accepting.append((self.pipe.written, job))
            elif message.kind is Kind.CANCEL:
                self._terminate(message.job_id)
            elif message.kind is Kind.DRAIN:
                self._draining = True
            elif message.kind is Kind.ABORT:
                self.aborting = True
                self._finish()
            else:
                raise AssertionError(f"{message.kind!r} is not for a child")
        self._flush()

    def _start_accepted(self) -> None:
        accepting = self._accepting
        while accepting and accepting[0][0] <= self.pipe.sent:
            _, job = accepting.popleft()
            self._start(job)
            if self.watchdog is not None:
                self.watchdog.wake()

    def _start(self, job: JobContext) -> None:
        # Not `create_task`: whatever makes the tasks of bodies has no say in ours.
        task: asyncio.Task[bytes] = Task(
            self._run(job), loop=self.loop, name=job.who, context=self._context.copy()
        )
        self._running[job.job_id] = job, task
        task.add_done_callback(functools.partial(self._on_end, job))

    def _terminate(self, job_id: int) -> None:
        """End the body of one job; it may not have started, or have ended already."""
        for _, job in self._accepting:
            if job.job_id == job_id:
                job.terminating = True
                return
        if job_id in self._running:
            end_job(self._running[job_id][0])

    # One job.

    async def _run(self, job: JobContext) -> bytes:
        """Run one job and return its READY frame."""
        payload, job.payload = job.payload, None
        assert payload is not None
        enter_job(job)
        if self.django is not None:
            job.orm = self.django.enter()
        try:
            target, args, kwargs, soft, hard = _unpack(payload)
            del payload  # it would wait here as long as the body does
            control = self._control(job, target, args, Limits(soft, hard))
            if job.terminating:
                control.clock.terminate(time.monotonic())
                raise BodyStopped(None)
            if not is_traced(target):
                self._schedule_flush()  # it tells how many threads are in use
                value = await call_function(self.threads, job, target, args, kwargs)
                return self._encode_value(job.job_id, value)
            value = await self._trace(target, args, kwargs)
            if job.retries:
                value = await drive(send_retry, job, value, offload)
            return self._encode(job.job_id, True, value)
        except BaseException as exc:
            # Whatever a job raises is its own end: SystemExit must not end the
            # loop, and a cancelled job must still tell that its slot is free.
            return self._encode_error(job, exc)
        finally:
            self.steps.after_job(job)
            if job.orm is not None:
                job.orm.leave()

    def _on_end(self, job: JobContext, task: asyncio.Task[bytes]) -> None:
        """The asyncio task of *job* has ended, whatever has ended it: so has the job."""
        del self._running[job.job_id]
        if job.payload is not None and not job.aborted:
            # A stranger has cancelled it before its first step (a body that
            # cancels all that is on the loop): nothing of it has happened.
            self._start(job)
            return
        try:
            ready = task.result()
        except BaseException as exc:
            ready = self._encode_error(job, exc)
        if job.control is not None:
            job.control.close()
        job.loop_settings = None
        self._send(ready)

    def _control(self, job: JobContext, target: Any, args: Any, limits: Limits) -> BodyControl:
        its_id = args[1] if is_traced(target) else job.job_id
        job.who = f"{name_of_call(target, args)}[{its_id}]"
        job.control = BodyControl(
            limits,
            self.grace,
            self.loop,
            job.who,
            on_started=functools.partial(self._on_started, job.job_id),
            on_cancelled=functools.partial(self._send_now, Kind.CANCELLED, job.job_id),
            on_limit=functools.partial(self._on_limit, job.job_id),
            on_over=functools.partial(self._send_now, Kind.OVER, job.job_id),
            on_stuck=functools.partial(self._on_stuck, job.job_id),
        )
        job.steps = self.steps
        job.control.task = asyncio.current_task()
        assert job.control.task is not None
        job.control.task.set_name(job.who)
        return job.control

    def _on_started(self, job_id: int) -> None:
        # At once: the body may block the loop from its first line on, and the
        # parent's own clock is then all that is left of its hard limit.
        self.pipe.write(protocol.encode_time(Kind.STARTED, job_id, time.monotonic()))
        self.pipe.flush()
        self._schedule_flush()

    def _on_limit(self, job_id: int, is_soft: bool) -> None:
        self._send_now(Kind.LIMIT, job_id, protocol.SOFT if is_soft else protocol.HARD)

    def _on_stuck(self, job_id: int, verdict: Verdict, stack: str, outcome: Any = None) -> None:
        """What runs of a job does not end; *outcome*: what its tracer would have returned."""
        who = self._running[job_id][0].who if job_id in self._running else f"job {job_id}"
        logger.error("%s does not end; its process must go:\n%s", who, stack)
        payload = self._payload(True, outcome) if outcome is not None else None
        self._send_now(Kind.STUCK, job_id, protocol.dumps((verdict.value, stack, payload)))

    def _send_now(self, kind: Kind, job_id: int, payload: bytes = b"") -> None:
        self._send(protocol.encode(kind, job_id, payload))

    async def _trace(self, target: Any, args: Any, kwargs: Any) -> Any:
        run = self.runs.get(args[0]) or self._prepare_late(args[0])
        if run.is_async:
            return await drive(target, *args, **kwargs)
        self._schedule_flush()  # it tells how many threads are in use
        return await self.threads.run(target, *args, **kwargs)

    def _prepare_late(self, name: str) -> RunCall:
        """Prepare a task that was registered after this process started."""
        task = self.app.tasks[name]
        run = self.runs[name] = tasks.prepare(task)
        tasks.build_trace(self.app, task)
        return run

    def _encode_error(self, job: JobContext, exc: BaseException) -> bytes:
        """Return the READY frame of a job whose tracer has reported nothing."""
        clock = job.control.clock if job.control is not None else None
        if job.aborted or (clock is not None and clock.is_detached):
            return protocol.encode(Kind.READY, job.job_id)
        if clock is not None and clock.verdict is Verdict.TERMINATED:
            exc = Terminated("SIGTERM")
        elif clock is not None and clock.verdict is Verdict.HARD_LIMIT:
            exc = TimeLimitExceeded(clock.limits.hard)
        return self._encode(job.job_id, False, _einfo(as_celery_expects(exc)))

    def _encode(self, job_id: int, succeeded: bool, value: Any) -> bytes:
        """Return the READY frame of what a tracer has returned, or of an error."""
        try:
            return protocol.encode(Kind.READY, job_id, self._payload(succeeded, value))
        except Exception as exc:  # a frame cannot have this size
            replacement = _pickleable(succeeded, value, exc)
            return protocol.encode(Kind.READY, job_id, protocol.dumps(replacement))

    def _payload(self, succeeded: bool, value: Any) -> bytes:
        try:
            payload = protocol.dumps((succeeded, value))
            if not succeeded or value[0]:
                protocol.loads(payload)  # an exception may pickle and not unpickle
            return payload
        except Exception as exc:
            return protocol.dumps(_pickleable(succeeded, value, exc))

    def _encode_value(self, job_id: int, value: Any) -> bytes:
        """Return the READY frame of what a function has returned, whatever it is."""
        try:
            return protocol.encode(Kind.READY, job_id, protocol.dumps((True, value)))
        except Exception as exc:
            return self._encode(job_id, False, _einfo(MaybeEncodingError(exc, value)))

    # To the parent.

    def _send(self, frame: bytes) -> None:
        self.pipe.write(frame)
        self._schedule_flush()

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush_turn)

    def _flush_turn(self) -> None:
        self._flush_scheduled = False
        if self.signals is not None:
            self.signals.take_back()
        if self._status() != self._reported:
            self._write_status()
        elif self._report_timer is None and redis_counters() != self._reported_counters:
            self._report_timer = self.loop.call_later(REPORT_SECONDS, self._report_counters)
        self._flush()

    def _report_counters(self) -> None:
        self._report_timer = None
        if not self.finished.done():
            self._write_status()
            self._flush()

    def _write_status(self) -> None:
        self._reported, self._reported_counters = self._status(), redis_counters()
        status = protocol.dumps({**self._reported, **self._reported_counters})
        self.pipe.write(protocol.encode(Kind.STATUS, 0, status))

    def _status(self) -> dict[str, float]:
        status: dict[str, float] = {"threads": self.threads.in_use}
        if self.watchdog is not None:
            status.update(self.watchdog.counters())
        return status

    def _flush(self) -> None:
        done = self.pipe.flush()
        self._start_accepted()
        if self.pipe.eof:
            self.lose_parent()
        elif done and self._writing:
            self._writing = False
            self.loop.remove_writer(self.pipe.fileno())
        elif not done and not self._writing:
            # The parent does not read: results stay here, and new jobs wait
            # for their ACKs, until the kernel has room again.
            self._writing = True
            self.loop.add_writer(self.pipe.fileno(), self._flush)
        self._finish_if_done()

    def lose_parent(self) -> None:
        """The parent has gone, or makes no sense any more; harmless when repeated."""
        self.pipe.shut()
        self.loop.remove_reader(self.pipe.fileno())
        if self._writing:
            self._writing = False
            self.loop.remove_writer(self.pipe.fileno())
        self._finish()

    def _finish_if_done(self) -> None:
        busy = self._running or self._accepting or self.pipe.unsent
        if self._draining and not busy:
            self._finish()

    def _finish(self) -> None:
        if not self.finished.done():
            self.finished.set_result(None)


def _einfo(exc: BaseException) -> ExceptionInfo:
    """Return the exception info of *exc*, which may not have been raised yet."""
    try:
        raise exc
    except BaseException:
        return ExceptionInfo()


def as_celery_expects(exc: BaseException) -> BaseException:
    """Return the exception that Celery's ``Request.on_failure`` is given for *exc*.

    A body that raises SystemExit or KeyboardInterrupt would have ended its
    process in Celery's own pool; tasks and operators know that outcome as
    ``WorkerLostError`` with this text.
    """
    if isinstance(exc, SystemExit):
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        status = human_status(code)
    elif isinstance(exc, KeyboardInterrupt):
        status = type(exc).__name__
    else:
        return exc
    lost = WorkerLostError(
        f"Worker exited prematurely: {status}. (The task raised {exc!r}; "
        "its process and the other tasks in it live on.)"
    )
    return lost.with_traceback(exc.__traceback__)


def _pickleable(succeeded: bool, value: Any, error: Exception) -> tuple[bool, Any]:
    """Return what can be said of a result that cannot be sent."""
    try:
        if not succeeded:
            return False, _pickleable_einfo(value)
        failed, retval, runtime = value
        if failed:
            return True, (failed, _pickleable_einfo(retval), runtime)
    except Exception as exc:
        error = exc
    return False, _einfo(WorkerLostError(f"the result could not be sent to the worker: {error!r}"))


def _pickleable_einfo(einfo: Any) -> Any:
    """Return *einfo* with an exception that can be pickled; its text is kept."""
    exception = getattr(einfo.exception, "exc", einfo.exception)
    wrapped = get_pickleable_exception(exception)
    copy = _einfo(wrapped)
    copy.traceback = einfo.traceback
    copy.internal = einfo.internal
    return copy


def _unpack(payload: bytes) -> Any:
    """Return what is to be called, its arguments and its limits."""
    target, args, kwargs, soft, hard = protocol.loads(payload)
    if is_traced(target):
        name, task_id, request, *rest = args
        args = (name, task_id, share_keys(request), *rest)
    return target, args, kwargs, soft, hard


def share_keys(value: dict[Any, Any]) -> dict[Any, Any]:
    """Return a dict like *value* whose keys are the same objects in all such dicts.

    Pickle makes new ones for each; of a request they are a third of its memory.
    """
    return {sys.intern(key) if type(key) is str else key: value[key] for key in value}
