"""Hub events go to the pure rooms; their answers become forks, writes and calls.

    Celery ──submit──> Dispatcher ──TASK──> pipe ──> worker process
    Celery <─callbacks── Job <──ACK, READY── pipe <──┘

Everything here runs in one thread: the one of the hub that the supervisor is
attached to. Nothing here waits. One turn of the hub reads at most one buffer
of each process, and writes all jobs of the turn with one write per process.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from typing import Any

from billiard.common import human_status
from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery.exceptions import Terminated, TimeLimitExceeded
from celery.utils.log import get_logger

from ..core import job as jobs
from ..core import lifecycle, protocol
from ..core.dispatch import Dispatcher
from ..core.job import Job
from ..core.lifecycle import Exit
from ..core.maintenance import RestartBudget, plan
from ..core.protocol import Kind, Message
from ..core.timelimits import Verdict
from .leftovers import kill_leftovers
from .process import Spawner, WorkerProcess

__all__ = ["Supervisor"]

logger = get_logger(__name__)

#: Seconds between two looks at all processes.
MAINTENANCE_INTERVAL = 1.0

#: Seconds in which a process that was told to abort, or lost its pipe, must be gone.
STOP_TIMEOUT = 2.0

#: Seconds that a process may be late in telling that a body's time is over.
BACKSTOP_MARGIN = 1.0

#: Seconds that a blocked process has to write its stacks before it is killed.
STACK_TIME = 0.3

#: Processes that may fail to start, within how many seconds.
START_FAILURES, START_FAILURES_PERIOD = 5, 60.0


class Supervisor:
    """The pool's processes and jobs.

    Arguments:
        spawner: starts processes.
        target: how many processes there should be.
        slots: jobs that each process may have in flight.
        limit: jobs that all processes together may have in flight.
        drain_timeout: seconds that the neighbours of a body that refuses to end have.
        cancel_grace: seconds that a cancelled body has to end.
        on_slot_free: called once for each job, when its slot is free again.
        on_give_up: called when processes fail to start again and again.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        spawner: Spawner,
        target: int,
        slots: int,
        limit: int,
        *,
        drain_timeout: float,
        cancel_grace: float,
        on_slot_free: Callable[[], Any],
        on_give_up: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spawner = spawner
        self.target = target
        self.dispatcher = Dispatcher(slots, limit)
        self.drain_timeout = drain_timeout
        self.cancel_grace = cancel_grace
        self._on_slot_free = on_slot_free
        self._on_give_up = on_give_up
        self._clock = clock
        self._processes: dict[int, WorkerProcess] = {}
        self._budget = RestartBudget(START_FAILURES, START_FAILURES_PERIOD)
        #: Jobs that have not ended, wherever they are; Celery holds them weakly.
        self._jobs: dict[int, Job] = {}
        #: When the process of a job must have said something of its end: a heap
        #: of monotonic seconds and job ids. The latest entry of a job counts.
        self._backstops: list[tuple[float, int]] = []
        self._backstop_of: dict[int, float] = {}
        #: Turns of the hub so far: a job of an earlier one has waited.
        self._turn = 0
        self._hub: Any = None
        self._timer: Any = None
        self._gave_up = False
        self._on_finished: Callable[[], None] | None = None

    def __repr__(self) -> str:
        states = [process.life.state.value for process in self.processes]
        count = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
        return f"<Supervisor {count or 'no process'} | {self.dispatcher!r}>"

    @property
    def processes(self) -> list[WorkerProcess]:
        """All processes that have not exited."""
        return list(self._processes.values())

    @property
    def unfinished(self) -> int:
        """Jobs that have not ended, waiting ones included."""
        return len(self._jobs)

    # The hub.

    def attach(self, hub: Any) -> None:
        """Live in *hub* from now on; harmless when attached to it before.

        Celery resets its hub when it loses the broker, and then asks anew.
        """
        self._detach()
        self._hub = hub
        hub.on_tick.add(self._on_tick)
        self._timer = hub.call_repeatedly(MAINTENANCE_INTERVAL, self.maintain)
        for process in self.processes:
            self._watch(process)

    def _detach(self) -> None:
        if self._hub is None:
            return
        for process in self.processes:
            self._unwatch(process)
        self._hub.on_tick.discard(self._on_tick)
        self._timer.cancel()
        self._hub = None

    def _watch(self, process: WorkerProcess) -> None:
        if self._hub is None:
            return
        self._hub.add_reader(process.exit_fd, self._on_exit, process)
        if not process.pipe.eof:
            self._hub.add_reader(process.pipe.fileno(), self._on_readable, process)
            if process.pipe.unsent:
                self._hub.add_writer(process.write_fd, self._flush, process)

    def _unwatch(self, process: WorkerProcess) -> None:
        if self._hub is None:
            return
        self._hub.remove(process.exit_fd)
        self._unwatch_pipe(process)

    def _unwatch_pipe(self, process: WorkerProcess) -> None:
        if self._hub is not None:
            self._hub.remove(process.pipe.fileno())
            self._hub.remove(process.write_fd)

    # What Celery asks for.

    def submit(self, job: Job, error: Exception | None = None) -> None:
        """Take a new *job*, or report the *error* that kept it from being one."""
        job.turn = self._turn
        self._jobs[job.id] = job
        if error is not None:
            self._tell_error(job, error)
            self._discard(job)
        elif self._on_finished is not None:
            # Closing: the message stays unacknowledged, so the broker gives it
            # to somebody else.
            self._discard(job)
        else:
            self.dispatcher.enqueue(job)

    def drop_queued(self) -> int:
        """The broker is lost and will redeliver what no process has; return the count."""
        dropped = self.dispatcher.drop_queued()
        for job in dropped:
            self._discard(job)
        return len(dropped)

    def maintain(self) -> None:
        """Compare what is with what should be, and act."""
        for process in self.processes:
            if process.exitcode() is not None:
                self._on_exit(process)  # missed by the hub
            elif process.life.state is lifecycle.State.STARTING:
                # Its WORKER_UP may wait in the pipe while the hub could not
                # run, as when Celery was reconnecting to the broker.
                self._on_readable(process)
        self._replenish()
        self._check_backstops()
        self._finish_if_done()

    def _replenish(self) -> None:
        """Start what is missing, kill what is overdue; judges no process's end."""
        lives = [process.life for process in self.processes]
        to_do = plan(self._wanted(), lives, self._clock())
        for pid in to_do.kill:
            self._kill_overdue(self._processes[pid])
        for _ in range(to_do.spawn):
            if not self._spawn():
                break

    def terminate(self, job: Job, signum: int) -> None:
        """End *job*, wherever it is; its outcome is reported when it is known."""
        if job.has_ended or job.terminating is not None:
            return
        job.terminating = signum
        if job.is_queued:
            self._report_terminated(job)
            self._end(job)
        elif job.pid in self._processes:
            process = self._processes[job.pid]
            process.pipe.write(protocol.encode(Kind.CANCEL, job.id))
            self._flush(process)
            self._set_backstop(job, self._clock() + self.cancel_grace + BACKSTOP_MARGIN)

    def finish(self, on_finished: Callable[[], None]) -> None:
        """Warm shutdown: let all jobs end, then the processes; then *on_finished*."""
        self._on_finished = on_finished
        if self._gave_up:
            self.drop_queued()
        if self._jobs:
            some = ", ".join(str(job) for job in itertools.islice(self._jobs.values(), 5))
            logger.info("waiting for %d tasks to end: %s ...", len(self._jobs), some)
        self._finish_if_done()

    def abort(self, on_finished: Callable[[], None]) -> None:
        """Cold shutdown: end all processes; the jobs that they had report nothing.

        Bodies are cancelled and have :data:`STOP_TIMEOUT` seconds to clean up.
        """
        self._on_finished = on_finished
        self.drop_queued()
        for process in self.processes:
            for job in process.jobs.values():
                self._jobs.pop(job.id, None)
                self._backstop_of.pop(job.id, None)
            process.jobs.clear()
            if process.life.state is not lifecycle.State.STOPPING:
                self._stop(process)
        self._finish_if_done()

    def kill_all(self) -> None:
        """Kill all processes at once: the worker exits without having stopped us."""
        for process in self.processes:
            process.kill()

    # Jobs.

    def _on_tick(self) -> None:
        """Once per turn of the hub, before it polls."""
        self._turn += 1
        if self.dispatcher.queued:
            self._dispatch()

    def _dispatch(self) -> None:
        touched = set()
        for job in self.dispatcher.assign():
            assert job.pid is not None
            if job.turn < self._turn - 1 and self._was_revoked(job):
                self.dispatcher.release(job.pid)
                self._discard(job)
                continue
            process = self._processes[job.pid]
            process.send(job)
            touched.add(process)
        for process in touched:
            self._flush(process)

    def _was_revoked(self, job: Job) -> bool:
        """Whether a job that had to wait in the pool must not run any more."""
        revoked = job.callbacks.revoked
        return revoked is not None and bool(self._call(job, revoked))

    def _on_ack(self, process: WorkerProcess, message: Message) -> None:
        job = process.jobs.get(message.job_id)
        if job is None or not job.accept():
            return
        job.payload = b""  # it will not be sent again
        if job.callbacks.accept is not None:
            accepted_at = protocol.decode_time(message.payload)
            self._call(job, job.callbacks.accept, process.pid, accepted_at)

    def _on_ready(self, process: WorkerProcess, message: Message) -> None:
        job = process.jobs.pop(message.job_id, None)
        if job is None:
            return
        process.done += 1
        self.dispatcher.release(process.pid)
        process.stuck.discard(job.id)
        if message.payload and job.finish():
            self._tell_result(job, message.payload)
        self._end(job)
        self._kill_if_only_stuck(process)

    def _on_started(self, process: WorkerProcess, message: Message) -> None:
        """A body with a hard limit starts; from here on our own clock runs too."""
        job = process.jobs.get(message.job_id)
        if job is not None and job.limits.hard is not None and job.terminating is None:
            started = protocol.decode_time(message.payload)
            self._set_backstop(job, started + job.limits.hard + BACKSTOP_MARGIN)

    def _on_cancelled(self, process: WorkerProcess, message: Message) -> None:
        """Its process has cancelled the body: it is alive, and has until the grace is over."""
        job = process.jobs.get(message.job_id)
        if job is not None:
            self._set_backstop(job, self._clock() + self.cancel_grace + BACKSTOP_MARGIN)

    def _on_stuck(self, process: WorkerProcess, message: Message) -> None:
        """A body refuses to end: report its job now, and be rid of the process.

        A replacement starts at once, and the neighbours may finish.
        """
        job = process.jobs.get(message.job_id)
        if job is None:
            return
        self._backstop_of.pop(job.id, None)
        verdict, stack = protocol.loads(message.payload)
        process.stuck.add(job.id)
        self._drain(process)
        # Not maintain(): it would judge the jobs of a process that is gone while
        # messages of its last read wait to be handled.
        self._replenish()
        if verdict == Verdict.TERMINATED.value:
            self._report_terminated(job)
        else:
            self._report_timed_out(job, stack)
        self._kill_if_only_stuck(process)

    def _report_terminated(self, job: Job) -> None:
        if job.set_terminated():
            self._tell_error(job, Terminated(job.terminating))

    def _report_timed_out(self, job: Job, stack: str) -> None:
        if job.time_out():
            error = TimeLimitExceeded(job.limits.hard)
            error.add_note(f"When the limit was over, the task's body was here:\n{stack}")
            self._tell_error(job, error)

    # Our own clock.

    def _set_backstop(self, job: Job, when: float) -> None:
        self._backstop_of[job.id] = when
        heapq.heappush(self._backstops, (when, job.id))

    def _check_backstops(self) -> None:
        """Enforce the limits of bodies whose process has not, since its loop is blocked."""
        now = self._clock()
        while self._backstops and self._backstops[0][0] <= now:
            when, job_id = heapq.heappop(self._backstops)
            if self._backstop_of.get(job_id) == when:
                del self._backstop_of[job_id]
                self._enforce(self._jobs[job_id], now)

    def _enforce(self, job: Job, now: float) -> None:
        """The process of *job* is silent although its body's time is over."""
        process = self._processes.get(job.pid) if job.pid is not None else None
        if process is None or process.doom is not None:
            return
        process.read_report()
        if process.blocker not in (None, job.id) and job.id not in process.overdue:
            # Another task blocks the loop, and may yet let it go: a little time.
            process.overdue.add(job.id)
            self._set_backstop(job, now + self.cancel_grace)
            return
        process.overdue.add(job.id)
        self._doom(process, f"it did not end task {job}, whose time is over: its loop is blocked")
        process.ask_for_stack()
        if self._hub is not None:
            self._hub.call_later(STACK_TIME, self._kill_doomed, process)
        else:
            process.kill()
        self._replenish()

    def _doom(self, process: WorkerProcess, reason: str) -> None:
        """The process will be killed by us, for *reason*; it gets no more jobs."""
        process.doom = reason
        self.dispatcher.close_process(process.pid)
        if process.life.state is not lifecycle.State.STOPPING:
            process.life.stop(now=self._clock(), timeout=STOP_TIMEOUT)
        logger.error(
            "killing worker process %s, with %d other tasks: %s",
            process.pid,
            len(process.jobs) - len(process.stuck | process.overdue),
            reason,
        )

    def _kill_doomed(self, process: WorkerProcess) -> None:
        if process.pid not in self._processes:
            return
        stack = process.read_report()
        if stack:
            logger.error("worker process %s is here:\n%s", process.pid, stack)
        process.last_stack = stack
        process.kill()

    def _drain(self, process: WorkerProcess) -> None:
        if process.life.state is lifecycle.State.UP:
            self.dispatcher.close_process(process.pid)
            process.life.drain(deadline=self._clock() + self.drain_timeout)
            logger.warning(
                "worker process %s drains: its other %d tasks have %ss to end",
                process.pid,
                len(process.jobs) - len(process.stuck),
                self.drain_timeout,
            )
            process.pipe.write(protocol.encode(Kind.DRAIN))
            self._flush(process)

    def _kill_if_only_stuck(self, process: WorkerProcess) -> None:
        """A process that is left with nothing but bodies that refuse to end goes."""
        if process.stuck and process.stuck.issuperset(process.jobs) and process.doom is None:
            self._doom(process, "its task does not end")
            process.kill()

    def _tell_result(self, job: Job, payload: bytes) -> None:
        try:
            succeeded, value = protocol.loads(payload)
        except Exception as exc:
            self._tell_error(job, exc)
            return
        callback = job.callbacks.success if succeeded else job.callbacks.error
        if callback is not None:
            self._call(job, callback, value)

    def _tell_error(self, job: Job, error: Exception) -> None:
        """Report *error* as the outcome of *job*."""
        if job.callbacks.error is None:
            return
        try:
            raise error
        except Exception:
            self._call(job, job.callbacks.error, ExceptionInfo())

    def _discard(self, job: Job) -> None:
        job.discard()
        self._end(job)

    def _end(self, job: Job) -> None:
        """The job has ended and its slot is free; the last thing that happens to it.

        Releasing the slot may bring the next job in at once.
        """
        self._backstop_of.pop(job.id, None)
        if self._jobs.pop(job.id, None) is not None:
            self._on_slot_free()

    def _call(self, job: Job, callback: Callable[..., Any], *args: Any) -> Any:
        """Call into Celery; what goes wrong there must not end the hub."""
        try:
            return callback(*args)
        except job.callbacks.propagate:
            raise
        except Exception as exc:
            logger.error("job %d %s: Celery's callback raised %r", job.id, job, exc, exc_info=True)
            return None

    # Processes.

    def _spawn(self) -> bool:
        """Start one process; False when the system cannot, to be tried again."""
        try:
            process = self.spawner.spawn(self._clock(), self._inherited_fds())
        except OSError as exc:
            logger.error(
                "cannot start a worker process: %s; trying again in %ss",
                exc,
                MAINTENANCE_INTERVAL,
            )
            return False
        self._processes[process.pid] = process
        logger.debug("= %r", process.life)
        self._watch(process)
        return True

    def _inherited_fds(self) -> tuple[int, ...]:
        fds: list[int] = []
        for process in self.processes:
            fds += (process.pipe.fileno(), process.write_fd, process.exit_fd, process.report_fd)
        return tuple(fd for fd in fds if fd >= 0)

    def _on_readable(self, process: WorkerProcess) -> None:
        try:
            messages = process.pipe.read()
        except protocol.ProtocolError as exc:
            logger.critical("worker process %s: %s; killing it", process.pid, exc)
            process.is_garbled = True
            self._unwatch_pipe(process)
            process.kill()
            return
        for message in messages:
            self._handle(process, message)
        if process.pipe.eof:
            self._on_eof(process)

    def _handle(self, process: WorkerProcess, message: Message) -> None:
        kind = message.kind
        if kind is Kind.READY:
            self._on_ready(process, message)
        elif kind is Kind.ACK:
            self._on_ack(process, message)
        elif kind is Kind.STARTED:
            self._on_started(process, message)
        elif kind is Kind.CANCELLED:
            self._on_cancelled(process, message)
        elif kind is Kind.STUCK:
            self._on_stuck(process, message)
        elif kind is Kind.STATUS:
            process.status = protocol.loads(message.payload)
        elif kind is Kind.WORKER_UP:
            if process.life.on_up():
                logger.debug("= %r", process.life)
                self.dispatcher.add_process(process.pid)
                self._finish_if_done()
        else:
            raise AssertionError(f"{kind!r} is not for the parent")

    def _on_eof(self, process: WorkerProcess) -> None:
        """Nothing more will come from it: it exits, or must be made to."""
        self._unwatch_pipe(process)
        self.dispatcher.close_process(process.pid)
        process.life.on_eof(now=self._clock(), timeout=STOP_TIMEOUT)

    def _flush(self, process: WorkerProcess) -> None:
        done = process.pipe.flush()
        if self._hub is None:
            return
        if done:
            if process.write_fd in self._hub.writers:
                self._hub.remove(process.write_fd)
        elif process.write_fd not in self._hub.writers:
            # Its socket is full: it is busy or stopped. The others go on.
            self._hub.add_writer(process.write_fd, self._flush, process)

    def _on_exit(self, process: WorkerProcess) -> None:
        exitcode = process.exitcode()
        if exitcode is None or process.pid not in self._processes:
            return
        # What it wrote before it died counts, so its pipe is read to the end
        # before its jobs are judged.
        self._read_to_end(process)
        self._unwatch(process)
        del self._processes[process.pid]
        self.dispatcher.remove_process(process.pid)
        exit = process.life.on_exit(exitcode)
        self._log_exit(process, exit, exitcode)
        if exitcode != 0:
            kill_leftovers(process.pid)
        process.close()
        if exit.at_start:
            self._on_start_failure()
        accepted = self._give_back(process)
        self.maintain()
        for job in accepted:
            self._lose(job, process, exit, exitcode)

    def _read_to_end(self, process: WorkerProcess) -> None:
        if process.pipe.eof:
            return
        try:
            messages = process.pipe.read_to_end()
        except protocol.ProtocolError as exc:
            logger.critical("worker process %s: %s", process.pid, exc)
            process.is_garbled = True
            return
        for message in messages:
            self._handle(process, message)

    def _give_back(self, process: WorkerProcess) -> list[Job]:
        """Queue the jobs that it never accepted; return those that it did."""
        unaccepted: list[Job] = []
        others: list[Job] = []
        for job in process.jobs.values():
            is_sent = job.state is jobs.State.SENT and not process.is_garbled
            (unaccepted if is_sent and job.terminating is None else others).append(job)
        process.jobs.clear()
        for job in unaccepted:
            job.give_back()
        self.dispatcher.requeue(unaccepted)
        return others

    def _lose(self, job: Job, process: WorkerProcess, exit: Exit, exitcode: int) -> None:
        if job.terminating is not None:
            self._report_terminated(job)
        elif job.id in process.overdue and job.limits.hard is not None:
            logger.error("Hard time limit (%ss) exceeded for %s", job.limits.hard, job)
            self._report_timed_out(job, process.last_stack)
        elif job.lose():
            why = ", perhaps out of memory" if exit.perhaps_oom else ""
            if process.doom is not None:
                why = f", since {process.doom}"
            self._tell_error(
                job,
                WorkerLostError(
                    f"Worker exited prematurely: {human_status(exitcode)}{why} "
                    f"Job: {job.id}. (worker process {process.pid})"
                ),
            )
        self._end(job)

    def _log_exit(self, process: WorkerProcess, exit: Exit, exitcode: int) -> None:
        if exit.expected:
            logger.debug("= %r: %s", process.life, human_status(exitcode))
            return
        logger.error(
            "worker process %s %s: %s%s; %d jobs were in flight",
            process.pid,
            "did not start" if exit.at_start else "is gone",
            human_status(exitcode),
            ", perhaps out of memory" if exit.perhaps_oom else "",
            len(process.jobs),
        )

    def _kill_overdue(self, process: WorkerProcess) -> None:
        """It did not start, drain or go in time. Its exit does the rest."""
        if process.life.state is lifecycle.State.STARTING:
            logger.error(
                "worker process %s did not start within %ss (worker_proc_alive_timeout); "
                "killing it",
                process.pid,
                self.spawner.start_timeout,
            )
        elif process.life.state is lifecycle.State.DRAINING and not process.pipe.eof:
            self._doom(process, "its tasks' time to end is over (asyncpool_drain_timeout)")
        process.kill()

    def _on_start_failure(self) -> None:
        if self._budget.on_failure(self._clock()) or self._gave_up:
            return
        self._gave_up = True
        logger.critical(
            "%d worker processes in a row could not start; giving up. "
            "The reason is in the log above, at the process's start",
            self._budget.failures,
        )
        self._on_give_up()

    # The end.

    def _wanted(self) -> int:
        """How many processes should take jobs now."""
        if self._gave_up:
            return 0
        if self._on_finished is not None and not self._jobs:
            return 0
        return self.target

    def _finish_if_done(self) -> None:
        if self._on_finished is None or self._jobs:
            return
        for process in self.processes:
            if process.life.state is lifecycle.State.UP:
                self.dispatcher.close_process(process.pid)
                process.life.drain()
                process.pipe.write(protocol.encode(Kind.DRAIN))
                self._flush(process)
            elif process.life.state is lifecycle.State.STARTING:
                self._stop(process)
        if not self._processes:
            on_finished, self._on_finished = self._on_finished, _nothing
            self._detach()
            on_finished()

    def _stop(self, process: WorkerProcess) -> None:
        """Close its pipe: it cancels what runs and exits, or is killed."""
        self._unwatch_pipe(process)
        self.dispatcher.close_process(process.pid)
        process.life.stop(now=self._clock(), timeout=STOP_TIMEOUT)
        process.pipe.shut()


def _nothing() -> None:
    """Stands for an end that has been announced."""
