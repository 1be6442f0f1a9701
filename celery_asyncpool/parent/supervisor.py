"""Hub events go to the pure rooms; their answers become forks, writes and calls.

    Celery ──submit──> Dispatcher ──TASK──> pipe ──> worker process
    Celery <─callbacks── Job <──ACK, READY── pipe <──┘

Everything here runs in one thread: the one of the hub that the supervisor is
attached to. Nothing here waits. One turn of the hub reads at most one buffer
of each process, and writes all jobs of the turn with one write per process.
"""

from __future__ import annotations

import functools
import itertools
import os
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
from ..core.backstops import Backstops
from ..core.caps import Caps
from ..core.crashes import Crashes
from ..core.dispatch import Dispatcher
from ..core.job import Job
from ..core.lifecycle import Exit
from ..core.maintenance import Backoff, RestartBudget, number_for_new, plan, spread
from ..core.protocol import Kind, Message
from ..core.timelimits import Verdict
from ..leftovers import find_leftovers, kill_leftovers, name_of
from .adopted import Adopted
from .memory import resident_memory
from .process import Spawner, WorkerProcess

__all__ = ["EXIT_TIMEOUT", "Supervisor"]

logger = get_logger(__name__)

#: Seconds between two looks at all processes.
MAINTENANCE_INTERVAL = 1.0

#: Seconds in which a process that lost its pipe must be gone; one that was told to
#: abort has as many more than its bodies have to clean up.
STOP_TIMEOUT = 2.0

#: Seconds in which a process must be gone that drains and has no job left, beside
#: what its lifespans may take: receivers of ``worker_process_shutdown`` run then.
EXIT_TIMEOUT = 30.0

#: Seconds that a process may be late in telling that a body's time is over.
BACKSTOP_MARGIN = 1.0

#: Seconds that a blocked process has to write its stacks before it is killed.
STACK_TIME = 0.3

#: Processes that may fail to start, within how many seconds.
START_FAILURES, START_FAILURES_PERIOD = 5, 60.0

#: Seconds before the system is asked again for a process that it refused, at first
#: and at most.
RETRY_FIRST, RETRY_MOST = 1.0, 30.0


class Supervisor:
    """The pool's processes and jobs.

    Arguments:
        spawner: starts processes.
        limit: jobs that all processes together may have in flight.
        max_processes: over how many processes they are spread, at most.
        max_tasks: jobs after which a process is replaced; None: no limit.
        max_memory: KiB of resident memory above which it is; None: no limit.
        max_crashes: processes that one task may take down before it fails for good.
        drain_timeout: seconds that the neighbours of a body that refuses to end have.
        cancel_grace: seconds that a cancelled body has to end.
        exit_timeout: seconds in which a process must be gone that drains and has no
            job left.
        caps: how many of some tasks may run at once; by default there are none.
        on_slot_free: called when a job gives back the slot that it came with: once for
            each job, when it has ended or begins to wait for its cap, but not when
            one that has waited goes on with the slot.
        on_waiting: called with the number of jobs that wait for their caps, when it
            has changed.
        on_give_up: called when processes fail to start again and again.
        connection_errors: what Celery's callbacks raise when the broker is lost.
        adopted: what reaps the children that it has not started.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        spawner: Spawner,
        limit: int,
        max_processes: int,
        *,
        max_tasks: int | None = None,
        max_memory: int | None = None,
        max_crashes: int,
        drain_timeout: float,
        cancel_grace: float,
        exit_timeout: float = EXIT_TIMEOUT,
        caps: Caps | None = None,
        on_slot_free: Callable[[], Any],
        on_waiting: Callable[[int], Any] | None = None,
        on_give_up: Callable[[], None],
        connection_errors: tuple[type[BaseException], ...] = (),
        adopted: Adopted | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spawner = spawner
        self.max_processes = max_processes
        self.max_tasks = max_tasks
        self.max_memory = max_memory
        #: How many processes there should be.
        self.target, slots = spread(limit, max_processes)
        self.dispatcher = Dispatcher(slots, limit, caps)
        self.crashes = Crashes(max_crashes)
        self.drain_timeout = drain_timeout
        self.cancel_grace = cancel_grace
        self.exit_timeout = exit_timeout
        self._on_slot_free = on_slot_free
        self._on_waiting = on_waiting if on_waiting is not None else _nothing
        self._on_give_up = on_give_up
        self._connection_errors = connection_errors
        self._clock = clock
        self._processes: dict[int, WorkerProcess] = {}
        self._budget = RestartBudget(START_FAILURES, START_FAILURES_PERIOD)
        self._backoff = Backoff(RETRY_FIRST, RETRY_MOST)
        self._adopted = adopted if adopted is not None else Adopted()
        #: Dead processes whose subprocesses are still to be looked for, and
        #: whether their ends were orderly.
        self._not_cleared: dict[int, bool] = {}
        #: Jobs that have not ended, wherever they are; Celery holds them weakly.
        self._jobs: dict[int, Job] = {}
        #: Slots that jobs have, waiting for a process or in one.
        self.slots_taken = 0
        #: Slots that are free again, of which nobody was told yet.
        self._freed = 0
        self._is_freeing = False
        #: Of how many waiting jobs was told.
        self._told_waiting = 0
        self._backstops = Backstops()
        #: Turns of the hub so far: a job of an earlier one has waited.
        self._turn = 0
        self._hub: Any = None
        self._timer: Any = None
        self._gave_up = False
        #: Calls of the hub that have not returned.
        self._depth = 0
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

    @property
    def is_busy(self) -> bool:
        """Whether the hub has called and waits: true in a signal handler that interrupts us."""
        return self._depth > 0

    # The hub.

    def attach(self, hub: Any) -> None:
        """Live in *hub* from now on; harmless when attached to it before.

        Celery resets its hub when it loses the broker, and then asks anew.
        """
        self._detach()
        self._hub = hub
        hub.on_tick.add(self._on_tick)
        self._timer = hub.call_repeatedly(MAINTENANCE_INTERVAL, self._guard, self.maintain)
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
        self._hub.add_reader(process.exit_fd, self._guard, self._on_exit, process)
        if not process.pipe.eof:
            self._hub.add_reader(process.pipe.fileno(), self._guard, self._on_readable, process)
            if process.pipe.unsent:
                self._hub.add_writer(process.write_fd, self._guard, self._flush, process)

    def _guard(self, function: Callable[..., Any], *args: Any) -> None:
        """Call *function* for the hub, to which an ``OSError`` is a lost broker.

        Celery lets the hub pass on what its transport calls connection errors, and
        reconnects, or ends when no descriptor is left. Ours have another cause.
        """
        self._depth += 1
        try:
            function(*args)
        except OSError as exc:
            logger.critical("the pool cannot go on as it should: %r", exc, exc_info=True)
        finally:
            self._depth -= 1

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
        job.quarantined = self.crashes.is_quarantined(job.uuid)
        self._jobs[job.id] = job
        self.slots_taken += 1
        if error is not None:
            self._refuse(job, error)
        elif self._on_finished is not None:
            # Closing: the message stays unacknowledged, so the broker gives it
            # to somebody else.
            self._discard(job)
        else:
            self._enqueue(job)

    def _refuse(self, job: Job, error: Exception) -> None:
        """Report *error* of a job that cannot run, as that of one that has run.

        It is accepted first, since that is when Celery acknowledges early.
        """
        try:
            if job.callbacks.accept is not None:
                self._call(job, job.callbacks.accept, os.getpid(), self._clock())
            self._tell_error(job, error)
        finally:
            self._discard(job)

    def _enqueue(self, job: Job) -> None:
        self.dispatcher.enqueue(job)
        if job.waits:
            self._free_slot()
            self._tell_waiting()

    def drop_queued(self) -> int:
        """The broker is lost and will redeliver what no process has; return the count."""
        dropped = self.dispatcher.drop_queued()
        for job in dropped:
            self._discard(job)
        self._tell_waiting()
        return len(dropped)

    def maintain(self) -> None:
        """Compare what is with what should be, and act."""
        # What they have said may wait in the pipes while the hub could not run,
        # as when Celery was reconnecting to the broker: nobody is late by that.
        self.catch_up()
        for process in self.processes:
            if process.exitcode() is not None and not process.is_read:
                self._on_exit(process)  # missed by the hub
        if self.max_memory is not None:
            self._judge_memory(self.max_memory)
        self._replenish()
        self._check_backstops()
        for pid in set(self._not_cleared) - set(self._processes):
            self._clear_up(pid, self._not_cleared.pop(pid))
        self._adopted.reap(self._clock(), self._processes)
        self._finish_if_done()

    def _replenish(self) -> None:
        """Start what is missing, retire and kill what is to go; judges no process's end."""
        lives = [process.life for process in self.processes]
        to_do = plan(self._wanted(), lives, self._clock(), self.dispatcher.load)
        for pid in to_do.kill:
            self._kill_overdue(self._processes[pid])
        for pid in to_do.drain:
            self._retire(self._processes[pid])
        for _ in range(to_do.spawn):
            if not self._backoff.may_try(self._clock()) or not self._spawn():
                break

    def resize(self, limit: int) -> None:
        """From now on *limit* jobs may be in flight; starts and retires processes for it."""
        self.target, slots = spread(limit, self.max_processes)
        self.dispatcher.resize(slots, limit)
        self.maintain()

    def restart(self) -> None:
        """Replace all processes, one after the other; their jobs run to their ends."""
        for process in self.processes:
            process.life.retire("the pool restarts")
        self.maintain()

    def catch_up(self) -> None:
        """Hear what the processes have already reported, before they are judged."""
        for process in self.processes:
            while self._on_readable(process):
                continue

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
            self._backstops.set(job.id, self._clock() + self.cancel_grace + BACKSTOP_MARGIN)

    def finish(self, on_finished: Callable[[], None]) -> None:
        """Warm shutdown: let all jobs end, then the processes; then *on_finished*."""
        self._on_finished = on_finished
        if self._gave_up:
            self.drop_queued()
        for job in self.dispatcher.caps.drop_waiting():
            self._discard(job)  # as what waits for a slot in Celery's consumer
        if self._jobs:
            some = ", ".join(str(job) for job in itertools.islice(self._jobs.values(), 5))
            logger.info("waiting for %d tasks to end: %s ...", len(self._jobs), some)
        self._finish_if_done()

    def abort(self, on_finished: Callable[[], None]) -> None:
        """Cold shutdown: end all processes; the jobs that they had report nothing.

        Bodies are cancelled and have the grace time to clean up.
        """
        self.catch_up()  # what has been accepted is to be acknowledged
        self._on_finished = on_finished
        self.drop_queued()
        for job in list(self._jobs.values()):
            self._jobs.pop(job.id)
            self._backstops.clear(job.id)
        for process in self.processes:
            process.jobs.clear()
            if process.life.state is lifecycle.State.STARTING:
                self._stop(process)
            elif process.life.state is not lifecycle.State.STOPPING:
                self._abort(process)
        self._finish_if_done()

    def _abort(self, process: WorkerProcess) -> None:
        self.dispatcher.close_process(process.pid)
        process.life.stop(now=self._clock(), timeout=self.cancel_grace + STOP_TIMEOUT)
        process.pipe.write(protocol.encode(Kind.ABORT))
        self._flush(process)

    def kill_all(self) -> None:
        """Kill all processes and what they have started: the worker exits without stopping us."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            kill_leftovers(process.pid)

    # Jobs.

    def _on_tick(self) -> None:
        """Once per turn of the hub, before it polls."""
        self._turn += 1
        if self.dispatcher.queued:
            self._guard(self._dispatch)

    def _dispatch(self) -> None:
        touched = set()
        for job in self.dispatcher.assign():
            assert job.pid is not None
            if job.turn < self._turn - 1 and self._was_revoked(job):
                self.dispatcher.release(job)
                self._discard(job)
                continue
            process = self._processes[job.pid]
            process.send(job)
            touched.add(process)
        for process in touched:
            self._flush(process)
            self._judge_age(process)

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
        self.dispatcher.release(job)
        process.stuck.discard(job.id)
        process.overdue.pop(job.id, None)
        self.crashes.on_end(job.uuid)
        try:
            if message.payload and job.finish():
                self._tell_result(job, message.payload)
        finally:
            # Also when a callback lets Celery know that the broker is lost.
            self._end(job)
            self._kill_if_only_stuck(process)
            if not process.jobs:
                process.life.must_go(now=self._clock(), timeout=self.exit_timeout)

    def _on_started(self, process: WorkerProcess, message: Message) -> None:
        """A body with a hard limit starts; from here on our own clock runs too."""
        job = process.jobs.get(message.job_id)
        if job is not None and job.limits.hard is not None and job.terminating is None:
            started = protocol.decode_time(message.payload)
            self._backstops.set(job.id, started + job.limits.hard + BACKSTOP_MARGIN)

    def _on_cancelled(self, process: WorkerProcess, message: Message) -> None:
        """Its process has cancelled the body: it is alive, and has until the grace is over."""
        job = process.jobs.get(message.job_id)
        if job is not None:
            process.overdue.pop(job.id, None)  # it was only late
            self._backstops.set(job.id, self._clock() + self.cancel_grace + BACKSTOP_MARGIN)

    def _on_limit(self, process: WorkerProcess, message: Message) -> None:
        job = process.jobs.get(message.job_id)
        if job is not None and not job.has_ended:
            self._tell_timeout(job, is_soft=message.payload == protocol.SOFT)

    def _on_over(self, process: WorkerProcess, message: Message) -> None:
        """Its body, or what was to end of it, has ended: our clock is not for what comes."""
        process.overdue.pop(message.job_id, None)
        self._backstops.clear(message.job_id)

    def _on_stuck(self, process: WorkerProcess, message: Message) -> None:
        """A body refuses to end: report its job now, and be rid of the process.

        A replacement starts at once, and the neighbours may finish.
        """
        job = process.jobs.get(message.job_id)
        if job is None:
            return
        self._backstops.clear(job.id)
        verdict, stack, outcome = protocol.loads(message.payload)
        process.stuck.add(job.id)
        self._drain_for_stuck(process)
        # Not maintain(): it would judge the jobs of a process that is gone while
        # messages of its last read wait to be handled.
        self._replenish()
        if outcome is not None:
            if job.finish():
                self._tell_result(job, outcome)
        elif verdict == Verdict.TERMINATED.value:
            self._report_terminated(job)
        else:
            self._report_timed_out(job, stack)
        self._kill_if_only_stuck(process)

    def _report_terminated(self, job: Job) -> None:
        if job.set_terminated():
            self._tell_error(job, Terminated(job.terminating))

    def _report_timed_out(self, job: Job, stack: str) -> None:
        if job.time_out():
            self._tell_timeout(job, is_soft=False)
            error = TimeLimitExceeded(job.limits.hard)
            error.add_note(f"When the limit was over, the task's body was here:\n{stack}")
            self._tell_error(job, error)

    # Our own clock.

    def _check_backstops(self) -> None:
        """Enforce the limits of bodies whose process has not, since its loop is blocked."""
        now = self._clock()
        for job_id in self._backstops.due(now):
            self._enforce(self._jobs[job_id], now)

    def _enforce(self, job: Job, now: float) -> None:
        """The process of *job* is silent although its body's time is over."""
        process = self._processes.get(job.pid) if job.pid is not None else None
        if process is None or process.doom is not None:
            return
        process.read_report()
        deadline = process.overdue.setdefault(job.id, now + self.cancel_grace)
        if process.blocker != job.id and now < deadline:
            # It may only be late: busy, stopped, or blocked by another task.
            self._backstops.set(job.id, min(now + BACKSTOP_MARGIN, deadline))
            return
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
            len(process.jobs) - len(process.stuck | process.overdue.keys()),
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

    def _drain_for_stuck(self, process: WorkerProcess) -> None:
        """A body refuses to end: the process can only end with its neighbours' ends."""
        self._drain(process)
        if process.life.state is lifecycle.State.DRAINING:
            process.life.must_go(now=self._clock(), timeout=self.drain_timeout)
            logger.warning(
                "worker process %s drains: its other %d tasks have %ss to end",
                process.pid,
                len(process.jobs) - len(process.stuck),
                self.drain_timeout,
            )

    def _retire(self, process: WorkerProcess) -> None:
        """It is not needed any more, or its replacement is up."""
        if self._on_finished is None:
            logger.info(
                "worker process %s goes (%s); its %d tasks run to their ends",
                process.pid,
                process.life.retiring or "fewer are wanted",
                len(process.jobs),
            )
        self._drain(process)

    def _drain(self, process: WorkerProcess) -> None:
        """Give it no more jobs; it exits when those that it has are done."""
        if process.life.state is not lifecycle.State.UP:
            return
        self.dispatcher.close_process(process.pid)
        process.life.drain()
        if not process.jobs:
            process.life.must_go(now=self._clock(), timeout=self.exit_timeout)
        process.pipe.write(protocol.encode(Kind.DRAIN))
        self._flush(process)

    # Recycling.

    def _judge_age(self, process: WorkerProcess) -> None:
        if self.max_tasks is not None and process.sent >= self.max_tasks:
            reason = f"it has had {process.sent} tasks, worker_max_tasks_per_child"
            if process.life.retire(reason):
                self._replenish()

    def _judge_memory(self, most: int) -> None:
        for process in self.processes:
            memory = resident_memory(process.pid)
            if memory is not None and memory > most and process.fresh_memory is not None:
                process.life.retire(f"it uses {memory} KiB, worker_max_memory_per_child is {most}")

    def _judge_fresh_memory(self, process: WorkerProcess, most: int) -> None:
        """A limit below what a fresh process uses would replace processes without end."""
        process.fresh_memory = resident_memory(process.pid)
        if process.fresh_memory is not None and process.fresh_memory > most:
            logger.error(
                "worker_max_memory_per_child is %s KiB, and a worker process uses %s KiB before "
                "its first task: no process is replaced for its memory. Set it higher",
                most,
                process.fresh_memory,
            )
            self.max_memory = None

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
        if not succeeded:
            self._tell_failure(job, value)
        elif job.callbacks.success is not None:
            self._call(job, job.callbacks.success, value)

    def _tell_error(self, job: Job, error: Exception) -> None:
        """Report *error* as the outcome of *job*."""
        self._tell_failure(job, _einfo(error))

    def _tell_failure(self, job: Job, einfo: Any) -> None:
        if job.callbacks.error is not None:
            self._call(job, job.callbacks.error, einfo)
        else:
            logger.error(
                "job %d %s failed, and nobody has asked to be told: %s", job.id, job, einfo
            )

    def _tell_timeout(self, job: Job, *, is_soft: bool) -> None:
        """One of the limits of *job* is over: say so, once for each."""
        if not is_soft:
            if job.hard_is_told:
                return
            job.hard_is_told = True
        if job.callbacks.timeout is not None:
            seconds = job.limits.soft if is_soft else job.limits.hard
            self._call(
                job, functools.partial(job.callbacks.timeout, soft=is_soft, timeout=seconds)
            )

    def _discard(self, job: Job) -> None:
        job.discard()
        self._end(job)

    def _end(self, job: Job) -> None:
        """The job has ended and its slot is free; the last thing that happens to it.

        Its slot goes to the job that has waited for its place in a cap. Else it
        is free, which may bring the next job in at once.
        """
        self._backstops.clear(job.id)
        if self._jobs.pop(job.id, None) is None:
            return
        successor = self.dispatcher.leave(job)
        if not job.waits and successor is None:
            self._free_slot()
        self._tell_waiting()

    def _free_slot(self) -> None:
        """A slot is free: tell so, but not from within the telling.

        It may bring in one job after the other that has to wait for its cap, and
        gives the slot back.
        """
        self.slots_taken -= 1
        self._freed += 1
        if self._is_freeing:
            return
        self._is_freeing = True
        try:
            while self._freed:
                self._freed -= 1
                self._on_slot_free()
        finally:
            self._is_freeing = False

    def _tell_waiting(self) -> None:
        waiting = self.dispatcher.caps.waiting
        if waiting != self._told_waiting:
            self._told_waiting = waiting
            self._on_waiting(waiting)

    def _call(self, job: Job, callback: Callable[..., Any], *args: Any) -> Any:
        """Call into Celery; what goes wrong there must not end the hub."""
        try:
            return callback(*args)
        except job.callbacks.propagate:
            raise
        except self._connection_errors as exc:
            logger.error("job %d %s: not told, since a connection is lost: %r", job.id, job, exc)
            return None
        except Exception as exc:
            logger.error("job %d %s: Celery's callback raised %r", job.id, job, exc, exc_info=True)
            return None

    # Processes.

    def _spawn(self) -> bool:
        """Start one process; False when the system cannot, to be tried again."""
        try:
            process = self.spawner.spawn(self._clock(), self._inherited_fds(), self._number())
        except OSError as exc:
            logger.error(
                "cannot start a worker process: %s; %d are running. Trying again in %.0fs",
                exc,
                len(self._processes),
                self._backoff.on_failure(self._clock()),
            )
            return False
        self._processes[process.pid] = process
        logger.debug("= %r", process.life)
        self._watch(process)
        return True

    def _number(self) -> int:
        """The number of the next process."""
        serving = {process.index for process in self.processes if process.life.serves}
        leaving = {process.index for process in self.processes if not process.life.serves}
        return number_for_new(self.target, serving, leaving)

    def _inherited_fds(self) -> tuple[int, ...]:
        return tuple(fd for process in self.processes for fd in process.fds)

    def _on_readable(self, process: WorkerProcess) -> bool:
        """Read and handle one buffer; False if there was no message in it.

        Does nothing when that is going on already, further down the stack: a
        signal handler may have interrupted it, or Celery may ask for something
        while it is told of a result. Messages are handled in their order.
        """
        if process.pipe.eof or process.is_read:
            return False
        process.is_read = True
        try:
            messages = process.pipe.read()
            for message in messages:
                self._handle(process, message)
        except protocol.ProtocolError as exc:
            logger.critical("worker process %s: %s; killing it", process.pid, exc)
            process.is_garbled = True
            self._unwatch_pipe(process)
            process.kill()
            return False
        finally:
            process.is_read = False
        if process.pipe.eof:
            self._on_eof(process)
        return bool(messages)

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
        elif kind is Kind.LIMIT:
            self._on_limit(process, message)
        elif kind is Kind.OVER:
            self._on_over(process, message)
        elif kind is Kind.STUCK:
            self._on_stuck(process, message)
        elif kind is Kind.STATUS:
            process.status = protocol.loads(message.payload)
        elif kind is Kind.WORKER_UP:
            if process.life.on_up():
                logger.debug("= %r", process.life)
                self.dispatcher.add_process(process.pid)
                self._backoff.on_success()
                if self.max_memory is not None:
                    self._judge_fresh_memory(process, self.max_memory)
                self._replenish()  # it may be the spare one that another has waited for
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
        if done:
            self.dispatcher.resume(process.pid)
        else:
            self.dispatcher.hold(process.pid)
        if self._hub is None:
            return
        if done:
            if process.write_fd in self._hub.writers:
                self._hub.remove(process.write_fd)
        elif process.write_fd not in self._hub.writers:
            # Its socket is full: it is busy or stopped. The others go on.
            self._hub.add_writer(process.write_fd, self._guard, self._flush, process)

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
        is_orderly = process.life.state is lifecycle.State.DRAINING and exitcode == 0
        exit = process.life.on_exit(exitcode)
        self._log_exit(process, exit, exitcode)
        self._clear_up(process.pid, is_orderly)
        process.close()
        if exit.at_start:
            self._on_start_failure()
        accepted = self._give_back(process)
        self.maintain()
        for job in accepted:
            self._lose(job, process, exit, exitcode)

    def _clear_up(self, pid: int, is_orderly: bool) -> None:
        """What an orderly process leaves is somebody's wish; what a dead one leaves is not."""
        try:
            left = find_leftovers(pid) if is_orderly else kill_leftovers(pid)
        except OSError as exc:
            # Nothing may keep us from settling the jobs of a dead process.
            logger.error("cannot look for subprocesses of worker process %s: %s", pid, exc)
            self._not_cleared[pid] = is_orderly
            return
        self._adopted.expect(left)
        if not is_orderly:
            return
        if left:
            names = ", ".join(name_of(leftover) for leftover in left)
            logger.warning("worker process %s has left subprocesses that run on: %s", pid, names)

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
            self._tell_lost(
                job,
                f"Worker exited prematurely: {human_status(exitcode)}{why} "
                f"Job: {job.id}. (worker process {process.pid})",
                is_suspect=process.doom is None,
            )
        self._end(job)

    def _tell_lost(self, job: Job, text: str, is_suspect: bool) -> None:
        """Report a lost job; one that has been lost too often will not run again."""
        count = self.crashes.on_crash(job.uuid) if is_suspect else 0
        fail_for_good = job.callbacks.fail_for_good
        if count < self.crashes.limit or fail_for_good is None or job.callbacks.may_crash:
            self._tell_error(job, WorkerLostError(text))
            return
        self.crashes.on_end(job.uuid)
        text += f" It was the task's crash number {count} (asyncpool_max_crashes): it is given up."
        self._call(job, fail_for_good, _einfo(WorkerLostError(text)))

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
                "worker process %s did not start within %gs (worker_proc_alive_timeout, and "
                "asyncpool_lifespan_timeout for each lifespan); killing it",
                process.pid,
                self.spawner.start_timeout,
            )
        elif process.life.state is lifecycle.State.DRAINING and process.jobs:
            if not process.pipe.eof:
                self._doom(process, "its tasks' time to end is over (asyncpool_drain_timeout)")
        elif process.life.state is lifecycle.State.DRAINING:
            self._doom(
                process, f"it has nothing left to do and did not exit in {self.exit_timeout:g}s"
            )
        process.kill()

    def _on_start_failure(self) -> None:
        self._backoff.on_failure(self._clock())
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
                self._drain(process)
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


def _einfo(error: Exception) -> ExceptionInfo:
    """Return the exception info of *error*, which was not raised."""
    try:
        raise error
    except Exception:
        return ExceptionInfo()


def _nothing(*args: Any) -> None:
    """Stands for an end that has been announced, and for somebody who listens."""
