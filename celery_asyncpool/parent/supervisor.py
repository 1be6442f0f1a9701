"""The pool's heart: read, decide, tell.

    hub ──bytes──> Wires ──messages──> JobTable, Fleet ──effects──> Reporter ──> Celery
                     ^                      └── frames, forks, kills ──┘

Everything here runs in one thread: the one of the hub that the supervisor is attached
to. Nothing here waits. One turn of the hub reads at most one buffer of each process,
and writes all jobs of the turn with one write per process.

Who may come back in, and when. Celery, while it is told of a job, may ask for
anything here (it submits the next job when it is told of a free slot, an autoscaler
resizes the pool); and a signal handler may interrupt any line and do the same. So
every entrance goes through :meth:`Supervisor._serve`, which puts the request into a
line. Who finds that line being served leaves it there: the one who serves it does so
when he has finished what he is at, one request after the other, and calls Celery only
when all requests are served. So no change of state is ever seen half done, and none
begins within another. A handler that comes between the server's last look at the line
and his end is heard with the hub's next turn, within a second.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from celery.utils.log import get_logger

from ..core import protocol
from ..core.caps import Caps
from ..core.job import Job
from ..core.jobs import Cancel, Effect, JobTable, Send
from ..core.maintenance import spread
from ..core.protocol import Kind, Message
from .adopted import Adopted
from .fleet import EXIT_TIMEOUT, Fleet, FleetOptions
from .process import Spawner, WorkerProcess
from .reporter import Call, Reporter
from .wires import Wires

__all__ = ["Supervisor"]

logger = get_logger(__name__)


class Supervisor:
    """The pool's processes and jobs.

    Arguments:
        spawner: starts processes.
        limit: jobs that all processes together may have in flight.
        max_processes: over how many processes they are spread, at most.
        max_tasks: jobs after which a process is replaced; None: no limit.
        max_memory: KiB of resident memory above which it is; None: no limit.
        max_crashes: processes that one task may take down before it fails for good.
        drain_timeout: seconds that the neighbours of a body that does not end have.
        cancel_grace: seconds that a cancelled body has to end.
        exit_timeout: seconds in which a process must be gone that drains and has no
            job left.
        caps: how many of some tasks may run at once; by default there are none.
        on_slot_free: called when a slot of the worker is free: once for each job that
            has ended or begins to wait for its cap, but not when one that has waited
            goes on with the slot, nor for a slot that a shrink has taken away.
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
        _, slots = spread(limit, max_processes)
        self.jobs = JobTable(
            slots, limit, caps, max_crashes=max_crashes, cancel_grace=cancel_grace
        )
        self.wires = Wires()
        options = FleetOptions(
            max_processes, max_tasks, max_memory, drain_timeout, cancel_grace, exit_timeout
        )
        self.fleet = Fleet(
            spawner, self.jobs, self.wires, limit, options, adopted or Adopted(), clock
        )
        self.reporter = Reporter(
            on_slot_free, on_waiting or _nothing, self._on_answer, connection_errors
        )
        self._on_give_up = on_give_up
        self._clock = clock
        #: What is to be done, and whether somebody is doing it.
        self._requests: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._is_serving = False
        self._on_finished: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<Supervisor {self.fleet!r} | {self.jobs!r}>"

    @property
    def processes(self) -> list[WorkerProcess]:
        """All processes that have not exited."""
        return self.fleet.processes

    @property
    def slots_taken(self) -> int:
        """Slots that jobs have, waiting for a process or in one."""
        return self.jobs.slots_taken

    @property
    def is_busy(self) -> bool:
        """Whether somebody serves: true in a signal handler that has interrupted him."""
        return self._is_serving

    # One after the other.

    def _serve(self, function: Callable[..., Any], *args: Any) -> None:
        """Call *function*, now or when the one who serves gets to it; see the module.

        Raises what Celery wants to be passed on, when all else is told.
        """
        self._requests.append((function, args))
        if self._is_serving:
            return
        self._is_serving = True
        passed_on: BaseException | None = None
        try:
            while self._requests or len(self.reporter):
                if self._requests:
                    self._call(*self._requests.popleft())
                else:
                    passed_on = self.reporter.tell_next() or passed_on
        finally:
            self._is_serving = False
        if passed_on is not None:
            raise passed_on

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Do one thing, and send what it has written.

        Celery lets the hub pass on what its transport calls connection errors, and
        reconnects, or ends when no descriptor is left. Ours have another cause.
        """
        try:
            function(*args)
            for process, has_room in self.wires.flush():
                self._set_room(process, has_room)
        except OSError as exc:
            logger.critical("the pool cannot go on as it should: %r", exc, exc_info=True)

    def _carry_out(self, effects: list[Effect]) -> None:
        """Send frames; let Celery hear the rest when the state is whole."""
        for effect in effects:
            if isinstance(effect, Send | Cancel):
                self._send(effect)
            else:
                self.reporter.add([effect])

    def _send(self, effect: Send | Cancel) -> None:
        job = effect.job
        process = self.fleet.get(job.pid)
        if process is None:
            return  # its end is known, and is being dealt with
        if isinstance(effect, Cancel):
            self.wires.write(process, Kind.CANCEL, job.id)
            return
        self.wires.write(process, Kind.TASK, job.id, job.payload)
        if self.fleet.judge_age(process):
            self._serve(self.fleet.replenish)

    def _on_answer(self, job: Job, must_not_run: bool) -> None:
        self._serve(lambda: self._carry_out(self.jobs.answer(job, must_not_run)))

    # What Celery asks for.

    def submit(self, job: Job, error: Exception | None = None) -> None:
        """Take a new *job*, or report the *error* that kept it from being one."""
        self._serve(self._submit, job, error)

    def _submit(self, job: Job, error: Exception | None) -> None:
        if error is not None:
            self._carry_out(self.jobs.refuse(job, error, os.getpid(), self._clock()))
        elif self._on_finished is not None:
            self._carry_out(self.jobs.decline(job))
        else:
            self._carry_out(self.jobs.submit(job))

    def terminate(self, job: Job, signum: int) -> None:
        """End *job*, wherever it is; its outcome is reported when it is known."""
        self._serve(lambda: self._carry_out(self.jobs.terminate(job, signum, self._clock())))

    def drop_queued(self, then: Callable[[], None] | None = None) -> None:
        """The broker is lost, and will redeliver what no process has.

        *then* is called when Celery knows of all slots that are free.
        """
        self._serve(self._drop_queued, then or _nothing)

    def _drop_queued(self, then: Callable[[], None]) -> None:
        self._carry_out(self.jobs.drop_queued())
        self.reporter.add([Call(then)])

    def when_caught_up(self, function: Callable[[], Any]) -> None:
        """Call *function* when Celery has heard all that the processes have reported.

        At once, but in a signal handler that has interrupted the telling: there it is
        called when that is through.
        """
        self._serve(self._catch_up)
        self._serve(self.reporter.add, [Call(function)])

    def resize(self, limit: int) -> None:
        """From now on *limit* jobs may be in flight; starts and retires processes for it."""
        self._serve(self._resize, limit)

    def _resize(self, limit: int) -> None:
        self.jobs.resize(self.fleet.resize(limit), limit)
        self._maintain()

    def restart(self) -> None:
        """Replace all processes, one after the other; their jobs run to their ends."""
        self._serve(self.fleet.restart)
        self.maintain()

    def maintain(self) -> None:
        """Compare what is with what should be, and act."""
        self._serve(self._maintain)

    def _maintain(self) -> None:
        # What they have said may wait in the pipes while the hub could not run,
        # as when Celery was reconnecting to the broker: nobody is late by that.
        self._catch_up()
        for process in self.processes:
            self._bury_if_gone(process)  # missed by the hub
        self.fleet.judge_memory()
        self.fleet.replenish()
        self._enforce_limits()
        self.fleet.clear_up()
        self._finish_if_done()

    def _catch_up(self) -> None:
        """Hear what the processes have already reported, before they are judged."""
        for process in self.processes:
            while self._read(process):
                continue

    # The hub.

    def attach(self, hub: Any) -> None:
        """Live in *hub* from now on; harmless when attached to it before."""
        self.wires.attach(hub, self)

    def on_tick(self) -> None:
        """Once per turn of the hub, before it polls."""
        self.jobs.turn += 1
        if self.jobs.dispatcher.queued or self._requests or len(self.reporter):
            self._serve(self._dispatch)

    def _dispatch(self) -> None:
        self._carry_out(self.jobs.assign())

    def on_readable(self, process: WorkerProcess) -> None:
        """Read one buffer of *process*, and handle it."""
        self._serve(self._read, process)

    def on_writable(self, process: WorkerProcess) -> None:
        """There is room again in the pipe of *process*."""
        self._serve(lambda: self._set_room(process, self.wires.flush_one(process)))

    def on_exit(self, process: WorkerProcess) -> None:
        """The system says that *process* has exited."""
        process.look_for_reaper()
        self._serve(self._bury_if_gone, process)

    def _set_room(self, process: WorkerProcess, has_room: bool) -> None:
        if has_room:
            self.jobs.dispatcher.resume(process.pid)
        else:
            self.jobs.dispatcher.hold(process.pid)

    # What processes say.

    def _read(self, process: WorkerProcess) -> bool:
        """Read and handle one buffer; False if there was no message in it."""
        try:
            has_read = self.wires.read(process)
        except protocol.ProtocolError as exc:
            self._handle_inbox(process)
            self.fleet.kill_garbled(process, exc)
            return False
        self._handle_inbox(process)
        if process.pipe.eof and process.pipe_is_watched:
            self.fleet.on_eof(process)
        return has_read

    def _handle_inbox(self, process: WorkerProcess) -> None:
        while process.inbox:
            self._carry_out(self._handle(process, process.inbox.popleft()))

    def _handle(self, process: WorkerProcess, message: Message) -> list[Effect]:
        kind, pid, job_id, payload = message.kind, process.pid, message.job_id, message.payload
        if kind is Kind.READY:
            return self._on_ready(process, message)
        if kind is Kind.ACK:
            return self.jobs.accept(pid, job_id, protocol.decode_time(payload))
        if kind is Kind.STARTED:
            self.jobs.started(pid, job_id, protocol.decode_time(payload))
        elif kind is Kind.CANCELLED:
            self.jobs.cancelled(pid, job_id, self._clock())
        elif kind is Kind.LIMIT:
            return self.jobs.limit_over(pid, job_id, payload == protocol.SOFT)
        elif kind is Kind.OVER:
            self.jobs.over(pid, job_id)
        elif kind is Kind.STUCK:
            return self._on_stuck(process, message)
        elif kind is Kind.STATUS:
            process.status = protocol.loads(payload)
        elif kind is Kind.WORKER_UP:
            if self.fleet.on_up(process):
                self.fleet.replenish()  # it may be the spare one that another has waited for
                self._finish_if_done()
        else:
            raise AssertionError(f"{kind!r} is not for the parent")
        return []

    def _on_ready(self, process: WorkerProcess, message: Message) -> list[Effect]:
        effects = self.jobs.ready(process.pid, message.job_id, message.payload)
        self.fleet.kill_if_only_stuck(process)
        self.fleet.let_go(process)
        if self._on_finished is not None and not len(self.jobs):
            self._serve(self._finish_if_done)
        return effects

    def _on_stuck(self, process: WorkerProcess, message: Message) -> list[Effect]:
        effects = self.jobs.stuck(process.pid, message.job_id, *protocol.loads(message.payload))
        if message.job_id in self.jobs.held(process.pid).stuck:
            self.fleet.drain_for_stuck(process)
            self.fleet.replenish()
            self.fleet.kill_if_only_stuck(process)
        return effects

    # Our own clock.

    def _enforce_limits(self) -> None:
        """End bodies whose process has not ended them, since its loop is blocked."""
        now = self._clock()
        for job in self.jobs.overdue(now):
            process = self.fleet.get(job.pid)
            if process is None or process.doom is not None:
                continue
            process.read_report()
            is_late = self.jobs.wait_on(job, now)
            if is_late and process.blocker != job.id:
                continue  # busy, stopped, or blocked by another task
            self.jobs.backstops.clear(job.id)
            reason = f"it did not end task {job}, whose time is over: its loop is blocked"
            self.fleet.kill_blocked(process, reason)
            self.fleet.replenish()

    # Ends.

    def _bury_if_gone(self, process: WorkerProcess) -> None:
        if not self.fleet.has_gone(process):
            return
        # What it wrote before it died counts, so its pipe is read to the end
        # before its jobs are judged.
        try:
            self.wires.read_to_end(process)
        except protocol.ProtocolError as exc:
            self._handle_inbox(process)
            self.fleet.kill_garbled(process, exc)
        self._handle_inbox(process)
        had_given_up = self.fleet.gave_up
        loss = self.fleet.bury(process)
        self._carry_out(self.jobs.process_gone(process.pid, loss))
        if self.fleet.gave_up and not had_given_up:
            self._give_up()
        self.fleet.replenish()
        self._finish_if_done()

    def _give_up(self) -> None:
        """No process starts any more."""
        if self._on_finished is not None:
            self._give_back_queued()
        self._on_give_up()

    def _give_back_queued(self) -> None:
        before = len(self.jobs)
        self._carry_out(self.jobs.drop_queued())
        if len(self.jobs) < before:
            logger.warning(
                "no worker process starts: %d tasks that none has begun go back to the broker",
                before - len(self.jobs),
            )

    def finish(self, on_finished: Callable[[], None]) -> None:
        """Warm shutdown: let all jobs end, then the processes; then *on_finished*."""
        self._serve(self._finish, on_finished)

    def _finish(self, on_finished: Callable[[], None]) -> None:
        self._on_finished = on_finished
        self.fleet.is_closing = True
        if self.fleet.gave_up:
            self._give_back_queued()
        self._carry_out(self.jobs.drop_waiting())
        if len(self.jobs):
            some = ", ".join(str(job) for job in itertools.islice(self.jobs.jobs(), 5))
            logger.info("waiting for %d tasks to end: %s ...", len(self.jobs), some)
        self._finish_if_done()

    def abort(self, on_finished: Callable[[], None]) -> None:
        """Cold shutdown: end all processes; bodies have the grace time to clean up.

        Those that are ended report nothing. What has its outcome already, while it is
        being stored or its next attempt published, is told as ever, and acknowledged.
        """
        self._serve(self._abort, on_finished)

    def _abort(self, on_finished: Callable[[], None]) -> None:
        self._catch_up()  # what has been accepted is to be acknowledged
        self._on_finished = on_finished
        self.fleet.is_closing = True
        self._carry_out(self.jobs.drop_queued())
        self.jobs.abandon()
        self.fleet.abort_all()
        self._finish_if_done()

    def kill_all(self) -> None:
        """Kill all processes and what they have started: the worker exits without stopping us."""
        self.fleet.kill_all()

    def _finish_if_done(self) -> None:
        if self._on_finished is None or len(self.jobs):
            return
        self.fleet.close_all()
        if not len(self.fleet):
            on_finished, self._on_finished = self._on_finished, _nothing
            self.wires.detach()
            self.reporter.add([Call(on_finished)])


def _nothing(*args: Any) -> None:
    """Stands for an end that has been announced, and for somebody who listens."""
