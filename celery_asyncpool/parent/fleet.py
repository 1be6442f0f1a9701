"""The worker processes: how many there are and should be, and why each one goes.

Level-triggered: :meth:`Fleet.replenish` compares what is with what should be, so a
missed event heals at the next look. Nothing here calls Celery, or decides about a
job; what becomes of the jobs of a process that is gone, the caller asks the
:class:`~celery_asyncpool.core.jobs.JobTable`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from billiard.common import human_status
from celery.utils.log import get_logger

from ..core import lifecycle
from ..core.jobs import JobTable, Loss
from ..core.lifecycle import Exit
from ..core.maintenance import Backoff, RestartBudget, number_for_new, plan, spread
from ..core.protocol import Kind
from ..leftovers import find_leftovers, kill_leftovers, name_of
from .adopted import Adopted
from .memory import resident_memory
from .process import Spawner, WorkerProcess
from .wires import Wires

__all__ = ["EXIT_TIMEOUT", "Fleet", "FleetOptions"]

logger = get_logger(__name__)

#: Seconds in which a process that lost its pipe must be gone; one that was told to
#: abort has as many more than its bodies have to clean up.
STOP_TIMEOUT = 2.0

#: Seconds in which a process must be gone that drains and has no job left, beside
#: what its lifespans may take: receivers of ``worker_process_shutdown`` run then.
EXIT_TIMEOUT = 30.0

#: Seconds that a blocked process has to write its stacks before it is killed.
STACK_TIME = 0.3

#: Times in a row that processes may fail to start.
START_FAILURES = 5

#: Seconds before the system is asked again for a process that it refused, at first
#: and at most.
RETRY_FIRST, RETRY_MOST = 1.0, 30.0


class FleetOptions(NamedTuple):
    """How many processes there may be, and what each is granted.

    *max_processes*: over how many the slots are spread, at most.
    *max_tasks*: jobs after which a process is replaced; None: no limit.
    *max_memory*: KiB of resident memory above which it is; None: no limit.
    *drain_timeout*: seconds that the neighbours of a body that does not end have.
    *cancel_grace*: seconds that a cancelled body has to end.
    *exit_timeout*: seconds in which a process must be gone that has no job left.
    """

    max_processes: int
    max_tasks: int | None
    max_memory: int | None
    drain_timeout: float
    cancel_grace: float
    exit_timeout: float


class Fleet:
    """The worker processes of one pool.

    Arguments:
        spawner: starts processes.
        table: the jobs that they have.
        wires: how they are heard, and told.
        limit: jobs that all together may have in flight.
        options: see there.
        adopted: what reaps the children that it has not started.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        spawner: Spawner,
        table: JobTable,
        wires: Wires,
        limit: int,
        options: FleetOptions,
        adopted: Adopted,
        clock: Callable[[], float],
    ) -> None:
        self._spawner = spawner
        self._table = table
        self._wires = wires
        self._options = options
        self._clock = clock
        self._max_memory = options.max_memory
        #: How many processes there should be.
        self.target = spread(limit, options.max_processes)[0]
        #: No job comes any more: when the last has ended, no process is wanted.
        self.is_closing = False
        #: Processes could not start, again and again: no more are started.
        self.gave_up = False
        self._processes: dict[int, WorkerProcess] = {}
        self._pid = os.getpid()
        self._budget = RestartBudget(START_FAILURES)
        self._backoff = Backoff(RETRY_FIRST, RETRY_MOST)
        self._adopted = adopted
        #: Dead processes whose subprocesses are still to be looked for, and
        #: whether their ends were orderly.
        self._not_cleared: dict[int, bool] = {}

    def __repr__(self) -> str:
        states = [process.life.state.value for process in self.processes]
        count = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
        return f"<Fleet {count or 'no process'}>"

    def __len__(self) -> int:
        return len(self._processes)

    @property
    def processes(self) -> list[WorkerProcess]:
        """All processes that have not exited, as far as we know."""
        return list(self._processes.values())

    def get(self, pid: int | None) -> WorkerProcess | None:
        """The process *pid*; None when it is gone."""
        return self._processes.get(pid) if pid is not None else None

    # What is, against what should be.

    def resize(self, limit: int) -> int:
        """From now on *limit* jobs may be in flight; return the slots of one process."""
        self.target, slots = spread(limit, self._options.max_processes)
        return slots

    def replenish(self) -> None:
        """Start what is missing, retire and kill what is to go."""
        lives = [process.life for process in self.processes]
        to_do = plan(self._wanted(), lives, self._clock(), self._table.dispatcher.load)
        for pid in to_do.kill:
            self._kill_overdue(self._processes[pid])
        for pid in to_do.drain:
            self._retire(self._processes[pid])
        for _ in range(to_do.spawn):
            if not self._backoff.may_try(self._clock()) or not self._spawn():
                break

    def _wanted(self) -> int:
        """How many processes should take jobs now."""
        is_done = self.is_closing and not len(self._table)
        return 0 if self.gave_up or is_done else self.target

    def _spawn(self) -> bool:
        """Start one process; False when the system cannot, to be tried again."""
        inherited = tuple(fd for process in self.processes for fd in process.fds)
        try:
            process = self._spawner.spawn(self._clock(), inherited, self._number())
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
        self._wires.watch(process)
        return True

    def _number(self) -> int:
        """The number of the next process."""
        serving = {process.index for process in self.processes if process.life.serves}
        leaving = {process.index for process in self.processes if not process.life.serves}
        return number_for_new(self.target, serving, leaving)

    def on_up(self, process: WorkerProcess) -> bool:
        """It takes jobs from now on; False where that comes too late."""
        if not process.life.on_up():
            return False
        logger.debug("= %r", process.life)
        self._table.process_up(process.pid)
        self._backoff.on_success()
        self._budget.on_success()
        if self._max_memory is not None:
            self._judge_fresh_memory(process, self._max_memory)
        return True

    # Recycling.

    def restart(self) -> None:
        """Replace all processes, one after the other; their jobs run to their ends."""
        for process in self.processes:
            process.life.retire("the pool restarts")

    def judge_age(self, process: WorkerProcess) -> bool:
        """Whether it has just become too old."""
        most, sent = self._options.max_tasks, self._table.held(process.pid).sent
        if most is None or sent < most:
            return False
        return process.life.retire(f"it has had {sent} tasks, worker_max_tasks_per_child")

    def judge_memory(self) -> None:
        """Retire those that have grown too large."""
        most = self._max_memory
        if most is None:
            return
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
            self._max_memory = None

    # How a process is made to go.

    def _retire(self, process: WorkerProcess) -> None:
        """It is not needed any more, or its replacement is up."""
        if not self.is_closing:
            logger.info(
                "worker process %s goes (%s); its %d tasks run to their ends",
                process.pid,
                process.life.retiring or "fewer are wanted",
                len(self._table.held(process.pid).jobs),
            )
        self.drain(process)

    def drain(self, process: WorkerProcess) -> None:
        """Give it no more jobs; it exits when those that it has are done."""
        if process.life.state is not lifecycle.State.UP:
            return
        self._table.dispatcher.close_process(process.pid)
        process.life.drain()
        self.let_go(process)
        self._wires.write(process, Kind.DRAIN)

    def let_go(self, process: WorkerProcess) -> None:
        """One that drains and has no job left must be gone soon."""
        if not self._table.held(process.pid).jobs:
            process.life.must_go(now=self._clock(), timeout=self._options.exit_timeout)

    def drain_for_stuck(self, process: WorkerProcess) -> None:
        """A body does not end: the process can only end with its neighbours' ends."""
        self.drain(process)
        if process.life.state is lifecycle.State.DRAINING:
            timeout = self._options.drain_timeout
            process.life.must_go(now=self._clock(), timeout=timeout)
            logger.warning(
                "worker process %s drains: its other %d tasks have %ss to end",
                process.pid,
                self._table.held(process.pid).healthy,
                timeout,
            )

    def stop(self, process: WorkerProcess) -> None:
        """Close its pipe: it cancels what runs and exits, or is killed."""
        self._wires.unwatch_pipe(process)
        self._table.dispatcher.close_process(process.pid)
        process.life.stop(now=self._clock(), timeout=STOP_TIMEOUT)
        process.pipe.shut()

    def abort_all(self) -> None:
        """Cold shutdown: bodies are cancelled and have the grace time to clean up."""
        for process in self.processes:
            if process.life.state is lifecycle.State.STARTING:
                self.stop(process)
            elif process.life.state is not lifecycle.State.STOPPING:
                self._table.dispatcher.close_process(process.pid)
                timeout = self._options.cancel_grace + STOP_TIMEOUT
                process.life.stop(now=self._clock(), timeout=timeout)
                self._wires.write(process, Kind.ABORT)

    def close_all(self) -> None:
        """Warm shutdown, and no job is left: let all processes go."""
        for process in self.processes:
            if process.life.state is lifecycle.State.UP:
                self.drain(process)
            elif process.life.state is lifecycle.State.STARTING:
                self.stop(process)

    def kill_all(self) -> None:
        """Kill all processes and what they have started: the worker exits without stopping us.

        In a fork of the main process, whose exit comes here too, nothing: they are its
        siblings.
        """
        if os.getpid() != self._pid:
            return
        for process in self.processes:
            process.kill()
        for process in self.processes:
            kill_leftovers(process.pid)

    def kill_if_only_stuck(self, process: WorkerProcess) -> None:
        """A process that is left with nothing but bodies that do not end goes."""
        if self._table.held(process.pid).has_only_stuck and process.doom is None:
            self._doom(process, "its task does not end")
            process.kill()

    def kill_blocked(self, process: WorkerProcess, reason: str) -> None:
        """Its loop is blocked: it is killed when it has told where it is."""
        self._doom(process, reason)
        process.ask_for_stack()
        if self._wires.hub is not None:
            self._wires.hub.call_later(STACK_TIME, self._kill_doomed, process)
        else:
            process.kill()

    def _doom(self, process: WorkerProcess, reason: str) -> None:
        """The process will be killed by us, for *reason*; it gets no more jobs."""
        process.doom = reason
        self._table.dispatcher.close_process(process.pid)
        if process.life.state is not lifecycle.State.STOPPING:
            process.life.stop(now=self._clock(), timeout=STOP_TIMEOUT)
        logger.error(
            "killing worker process %s, with %d other tasks: %s",
            process.pid,
            self._table.held(process.pid).healthy,
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

    def kill_garbled(self, process: WorkerProcess, why: Exception) -> None:
        """What it writes makes no sense any more, nor would what it is told."""
        logger.critical("worker process %s: %s; killing it", process.pid, why)
        process.is_garbled = True
        self._wires.unwatch_pipe(process)
        process.kill()

    def _kill_overdue(self, process: WorkerProcess) -> None:
        """It did not start, drain or go in time. Its exit does the rest."""
        state = process.life.state
        if state is lifecycle.State.STARTING:
            process.doom = (
                f"it did not start within {self._spawner.start_timeout:g}s "
                "(worker_proc_alive_timeout, and asyncpool_lifespan_timeout for each lifespan)"
            )
            logger.error("worker process %s: %s; killing it", process.pid, process.doom)
        elif state is lifecycle.State.DRAINING and self._table.held(process.pid).jobs:
            if not process.pipe.eof:
                self._doom(process, "its tasks' time to end is over (asyncpool_drain_timeout)")
        elif state is lifecycle.State.DRAINING:
            timeout = self._options.exit_timeout
            self._doom(process, f"it has nothing left to do and did not exit in {timeout:g}s")
        process.kill()

    # How it goes.

    def on_eof(self, process: WorkerProcess) -> None:
        """Nothing more will come from it: it exits, or must be made to."""
        self._wires.unwatch_pipe(process)
        self._table.dispatcher.close_process(process.pid)
        process.life.on_eof(now=self._clock(), timeout=STOP_TIMEOUT)

    def has_gone(self, process: WorkerProcess) -> bool:
        """Whether it has exited, and nobody has dealt with that."""
        return process.pid in self._processes and process.exitcode() is not None

    def bury(self, process: WorkerProcess) -> Loss:
        """It is gone, and all that it has written was handled; return what is lost with it."""
        exitcode = process.exitcode()
        assert exitcode is not None
        self._wires.unwatch(process)
        del self._processes[process.pid]
        is_orderly = process.life.state is lifecycle.State.DRAINING and exitcode == 0
        exit = process.life.on_exit(exitcode)
        if process.doom is not None:
            exit = exit._replace(perhaps_oom=False)
        self._log_exit(process, exit, exitcode)
        self._clear_up(process.pid, is_orderly)
        process.close()
        if exit.at_start:
            self._on_start_failure()
        why = ", perhaps out of memory" if exit.perhaps_oom else ""
        if process.doom is not None:
            why = f", since {process.doom}"
        return Loss(
            f"Worker exited prematurely: {human_status(exitcode)}{why}",
            is_suspect=process.doom is None,
            stack=process.last_stack,
            is_garbled=process.is_garbled,
        )

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
            len(self._table.held(process.pid).jobs),
        )

    def _on_start_failure(self) -> None:
        now = self._clock()
        self._backoff.on_failure(now)
        if self._budget.on_failure(max(self.target, 1)) or self.gave_up:
            return
        self.gave_up = True
        logger.critical(
            "%d worker processes in a row could not start; giving up. "
            "The reason is in the log above, at the process's start",
            self._budget.failures,
        )

    # What it leaves.

    def clear_up(self) -> None:
        """Look again for what dead processes have left, and reap what has died since."""
        for pid in set(self._not_cleared) - set(self._processes):
            self._clear_up(pid, self._not_cleared.pop(pid))
        self._adopted.reap(self._clock(), self._processes)

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
        if is_orderly and left:
            names = ", ".join(name_of(leftover) for leftover in left)
            logger.warning("worker process %s has left subprocesses that run on: %s", pid, names)
