"""All jobs of the pool: who has which, what time they have, and what follows from an event.

One method for each thing that can happen. It changes the state, wholly, and returns
what is to be done about it: whom to tell, which frame to send. Nothing here does it;
so whatever Celery does while it is told, it finds the jobs as they are.

    submit ──> assign ──> Send                 accept ──> Tell ACCEPTED
                 └──> Ask (it has waited) ──answer──> Send, or nothing
    ready, stuck, terminate, process_gone ──> Tell, SlotFree, Waiting

Two rules: every change of which jobs there are happens here, and nothing here calls
Celery, writes to a pipe or looks at a clock.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

from .backstops import Backstops
from .caps import Caps
from .crashes import Crashes
from .dispatch import Dispatcher
from .job import Job, State
from .timelimits import Verdict

__all__ = [
    "Ask",
    "Cancel",
    "Effect",
    "Held",
    "JobTable",
    "Loss",
    "Report",
    "Send",
    "SlotFree",
    "Tell",
    "Waiting",
]

#: Seconds that a process may be late in telling that a body's time is over.
BACKSTOP_MARGIN = 1.0


class Report(Enum):
    """What Celery is told of a job; the detail that comes with it."""

    #: ``(pid, monotonic seconds)``.
    ACCEPTED = "accepted"
    #: The payload of its READY message.
    RESULT = "result"
    #: None; its process goes on with it.
    SOFT_LIMIT = "soft limit"
    HARD_LIMIT = "hard limit"
    #: The exception that kept it from being a job.
    REFUSED = "refused"
    #: None.
    TERMINATED = "terminated"
    #: The stack of where its body was.
    TIMED_OUT = "timed out"
    #: Likewise, of one whose process had to be killed for it.
    OVERDUE = "overdue"
    #: The text of its ``WorkerLostError``.
    LOST = "lost"
    #: Likewise, of one that has taken down its process too often.
    GIVEN_UP = "given up"


class Tell(NamedTuple):
    """Celery is to be told of *job*."""

    job: Job
    report: Report
    detail: Any = None


class Ask(NamedTuple):
    """Celery is to be asked whether *job*, which has waited, may still run."""

    job: Job


class SlotFree(NamedTuple):
    """A slot of the worker is free again."""


class Waiting(NamedTuple):
    """So many jobs wait for their caps now."""

    jobs: int


class Send(NamedTuple):
    """*job* goes to its process."""

    job: Job


class Cancel(NamedTuple):
    """The process of *job* is to end its body."""

    job: Job


Effect = Tell | Ask | SlotFree | Waiting | Send | Cancel


class Loss(NamedTuple):
    """Why what a process had accepted is lost.

    *text*: for the ``WorkerLostError``, where the numbers of job and process follow.
    *is_suspect*: whether one of the jobs may have been the reason.
    *stack*: where the process was, if it was killed for a body whose time was over.
    """

    text: str
    is_suspect: bool
    stack: str = ""
    #: Its stream was broken: what it had accepted is not known.
    is_garbled: bool = False


class Held:
    """The jobs that one process has."""

    __slots__ = ("done", "jobs", "overdue", "sent", "stuck")

    def __init__(self) -> None:
        #: Sent to it, not ended there.
        self.jobs: dict[int, Job] = {}
        #: Ids of those whose bodies do not end.
        self.stuck: set[int] = set()
        #: Those whose time is over and which it has not ended, and until when it may
        #: be only late (monotonic seconds).
        self.overdue: dict[int, float] = {}
        #: How many were sent to it, and have ended there.
        self.sent = 0
        self.done = 0

    @property
    def has_only_stuck(self) -> bool:
        """Whether nothing is left there but bodies that do not end."""
        return bool(self.stuck) and self.stuck.issuperset(self.jobs)

    @property
    def healthy(self) -> int:
        """Jobs that go on, as far as anybody knows."""
        return len(self.jobs) - len(self.stuck | self.overdue.keys())


class JobTable:
    """The pool's jobs.

    Arguments:
        slots: jobs that one process may have in flight.
        limit: jobs that all together may have in flight.
        caps: how many of some tasks may run at once; by default there are none.
        max_crashes: processes that one task may take down before it fails for good.
        cancel_grace: seconds that a cancelled body has to end.
    """

    def __init__(
        self,
        slots: int,
        limit: int,
        caps: Caps | None = None,
        *,
        max_crashes: int,
        cancel_grace: float,
    ) -> None:
        self.dispatcher = Dispatcher(slots, limit, caps)
        self.limit = limit
        self.crashes = Crashes(max_crashes)
        self.cancel_grace = cancel_grace
        self.backstops = Backstops()
        #: Turns of the hub so far: a job of an earlier one has waited.
        self.turn = 0
        #: Slots that jobs have, waiting for a process or in one.
        self.slots_taken = 0
        #: Jobs that have not ended, wherever they are; Celery holds them weakly.
        self._jobs: dict[int, Job] = {}
        self._held: dict[int, Held] = {}
        #: Jobs of which Celery is being asked whether they may run.
        self._asked: set[int] = set()
        #: Jobs of a cold shutdown that their processes still had, and what was not told of them.
        self._abandoned: dict[int, tuple[Job, list[Effect]]] = {}
        #: Of how many waiting jobs was told.
        self._told_waiting = 0

    def __repr__(self) -> str:
        return f"<JobTable {len(self._jobs)} jobs, {self.slots_taken}/{self.limit} slots>"

    def __len__(self) -> int:
        return len(self._jobs)

    def jobs(self) -> list[Job]:
        """All jobs that have not ended, in order of arrival."""
        return list(self._jobs.values())

    def held(self, pid: int) -> Held:
        """What process *pid* has; nothing when it is not known."""
        return self._held.get(pid) or Held()

    # Jobs come.

    def submit(self, job: Job) -> list[Effect]:
        """Take a new *job*: it waits for a process, or for its cap without a slot."""
        self._take(job)
        self.dispatcher.enqueue(job)
        return [*self._free_slot(), *self._tell_waiting()] if job.waits else []

    def refuse(self, job: Job, error: Exception, pid: int, at: float) -> list[Effect]:
        """*error* has kept *job* from being one: told as that of one that has run.

        It is accepted first, by process *pid*, *at* monotonic seconds, since that is
        when Celery acknowledges early.
        """
        self._take(job)
        accepted = Tell(job, Report.ACCEPTED, (pid, at))
        return [accepted, Tell(job, Report.REFUSED, error), *self._discard(job)]

    def decline(self, job: Job) -> list[Effect]:
        """No job is taken any more: the broker gives the message to somebody else."""
        self._take(job)
        return self._discard(job)

    def _take(self, job: Job) -> None:
        job.turn = self.turn
        job.quarantined = self.crashes.is_quarantined(job.uuid)
        self._jobs[job.id] = job
        self.slots_taken += 1

    def assign(self) -> list[Effect]:
        """Give waiting jobs to processes, while slots are free."""
        effects: list[Effect] = []
        for job in self.dispatcher.assign():
            assert job.pid is not None
            held = self._held[job.pid]
            held.jobs[job.id] = job
            if job.turn < self.turn - 1:
                self._asked.add(job.id)
                effects.append(Ask(job))
            else:
                effects.append(self._send(job, held))
        return effects

    def _send(self, job: Job, held: Held) -> Send:
        held.sent += 1
        return Send(job)

    def answer(self, job: Job, must_not_run: bool) -> list[Effect]:
        """What Celery has said to :class:`Ask`; too late when the job has gone elsewhere."""
        if job.id not in self._asked or job.pid is None:
            return []
        self._asked.discard(job.id)
        if not must_not_run:
            return [self._send(job, self._held[job.pid])]
        self._withdraw(job, job.pid)
        return self._discard(job)

    def _withdraw(self, job: Job, pid: int) -> None:
        """*job* was given to process *pid*, which has not heard of it."""
        self._held[pid].jobs.pop(job.id)
        self.dispatcher.release(job)

    def resize(self, slots: int, limit: int) -> None:
        """From now on a process may have *slots* jobs in flight, all together *limit*."""
        self.limit = limit
        self.dispatcher.resize(slots, limit)

    # What processes say.

    def process_up(self, pid: int) -> None:
        """Process *pid* takes jobs from now on."""
        self._held[pid] = Held()
        self.dispatcher.add_process(pid)

    def accept(self, pid: int, job_id: int, at: float) -> list[Effect]:
        """ACK: the process has accepted the job, *at* monotonic seconds."""
        if job_id in self._abandoned:
            return self._abandoned_accept(pid, job_id, at)
        job = self._job_of(pid, job_id)
        if job is None or not job.accept():
            return []
        job.payload = b""  # it will not be sent again
        return [Tell(job, Report.ACCEPTED, (pid, at))]

    def started(self, pid: int, job_id: int, at: float) -> None:
        """STARTED: a body with a hard limit starts; from here on our own clock runs too."""
        job = self._job_of(pid, job_id)
        if job is not None and job.limits.hard is not None and job.terminating is None:
            self.backstops.set(job.id, at + job.limits.hard + BACKSTOP_MARGIN)

    def cancelled(self, pid: int, job_id: int, now: float) -> None:
        """CANCELLED: the process is alive, and has until the grace is over."""
        job = self._job_of(pid, job_id)
        if job is not None:
            self._held[pid].overdue.pop(job.id, None)  # it was only late
            self._set_grace(job, now)

    def limit_over(self, pid: int, job_id: int, is_soft: bool) -> list[Effect]:
        """LIMIT: the process deals with that; whoever wants to know is told."""
        job = self._job_of(pid, job_id)
        if job is None or job.has_ended:
            return []
        return [Tell(job, Report.SOFT_LIMIT)] if is_soft else self._hard_limit(job)

    def over(self, pid: int, job_id: int) -> None:
        """OVER: the body, or what was to end of it, has ended: our clock is not for what comes."""
        if self._job_of(pid, job_id) is not None:
            self._held[pid].overdue.pop(job_id, None)
            self.backstops.clear(job_id)

    def stuck(
        self, pid: int, job_id: int, verdict: str, stack: str, outcome: bytes | None
    ) -> list[Effect]:
        """STUCK: what is to end does not; its outcome is told now, its slot stays taken.

        *outcome*: the payload of a READY, where the body has had its end.
        """
        job = self._job_of(pid, job_id)
        if job is None:
            return []
        self.backstops.clear(job.id)
        self._held[pid].stuck.add(job.id)
        if outcome is not None:
            return [Tell(job, Report.RESULT, outcome)] if job.finish() else []
        if verdict == Verdict.TERMINATED.value:
            return self._terminated(job)
        return self._timed_out(job, Report.TIMED_OUT, stack)

    def ready(self, pid: int, job_id: int, payload: bytes) -> list[Effect]:
        """READY: the job has ended in its process; without *payload* there is nothing to tell."""
        held = self.held(pid)
        job = held.jobs.pop(job_id, None)
        if job is None:
            return self._abandoned_ready(job_id, payload)
        held.done += 1
        held.stuck.discard(job.id)
        held.overdue.pop(job.id, None)
        self.dispatcher.release(job)
        self.crashes.on_end(job.uuid)
        told: list[Effect] = (
            [Tell(job, Report.RESULT, payload)] if payload and job.finish() else []
        )
        return told + self._end(job)

    def _abandoned_accept(self, pid: int, job_id: int, at: float) -> list[Effect]:
        """Its process may have been told to end before it began: told only with an outcome."""
        job, untold = self._abandoned[job_id]
        if job.accept():
            untold.append(Tell(job, Report.ACCEPTED, (pid, at)))
        return []

    def _abandoned_ready(self, job_id: int, payload: bytes) -> list[Effect]:
        """What had its outcome before it could be ended is settled, and must not run again.

        Of a late-ack task the next attempt may be published: it and this one, delivered
        again, would run side by side.
        """
        job, untold = self._abandoned.pop(job_id, (None, []))
        if job is None or not payload or not job.finish():
            return []
        return [*untold, Tell(job, Report.RESULT, payload)]

    def _job_of(self, pid: int, job_id: int) -> Job | None:
        held = self._held.get(pid)
        return held.jobs.get(job_id) if held is not None else None

    # Time, and ends from outside.

    def terminate(self, job: Job, signum: int, now: float) -> list[Effect]:
        """End *job*, wherever it is; its outcome is told when it is known."""
        if job.has_ended or job.terminating is not None or job.id not in self._jobs:
            return []
        job.terminating = signum
        if job.pid is not None and job.id in self._asked:
            self._asked.discard(job.id)
            self._withdraw(job, job.pid)
        elif not job.is_queued:
            self._set_grace(job, now)
            return [Cancel(job)]
        return [*self._terminated(job), *self._end(job)]

    def overdue(self, now: float) -> list[Job]:
        """Return the jobs whose processes are silent although their time is over, once each."""
        return [self._jobs[job_id] for job_id in self.backstops.due(now)]

    def wait_on(self, job: Job, now: float) -> bool:
        """Whether the process of an overdue *job* may be only late; then it gets a new time."""
        assert job.pid is not None
        deadline = self._held[job.pid].overdue.setdefault(job.id, now + self.cancel_grace)
        if now >= deadline:
            return False
        self.backstops.set(job.id, min(now + BACKSTOP_MARGIN, deadline))
        return True

    def _set_grace(self, job: Job, now: float) -> None:
        self.backstops.set(job.id, now + self.cancel_grace + BACKSTOP_MARGIN)

    # Processes go.

    def process_gone(self, pid: int, loss: Loss) -> list[Effect]:
        """Process *pid* is gone, and all that it has written is read.

        What it never accepted waits for another one; what it did is lost.
        """
        self.dispatcher.remove_process(pid)
        held = self._held.pop(pid, None)
        if held is None:
            return []
        unaccepted: list[Job] = []
        others: list[Job] = []
        for job in held.jobs.values():
            may_run = job.state is State.SENT and not loss.is_garbled and job.terminating is None
            (unaccepted if may_run else others).append(job)
        for job in unaccepted:
            self._asked.discard(job.id)
            job.give_back()
        self.dispatcher.requeue(unaccepted)
        effects: list[Effect] = []
        for job in others:
            effects += self._lose(job, held, loss)
        return effects

    def _lose(self, job: Job, held: Held, loss: Loss) -> list[Effect]:
        effects: list[Effect] = []
        if job.terminating is not None:
            effects = self._terminated(job)
        elif job.id in held.overdue and job.limits.hard is not None:
            effects = self._timed_out(job, Report.OVERDUE, loss.stack)
        elif job.lose():
            effects = [self._lost(job, loss)]
        return effects + self._end(job)

    def _lost(self, job: Job, loss: Loss) -> Tell:
        """One that has been lost too often will not run again."""
        text = f"{loss.text} Job: {job.id}. (worker process {job.pid})"
        count = self.crashes.on_crash(job.uuid) if loss.is_suspect else 0
        callbacks = job.callbacks
        if count < self.crashes.limit or callbacks.fail_for_good is None or callbacks.may_crash:
            return Tell(job, Report.LOST, text)
        self.crashes.on_end(job.uuid)
        text += f" It was the task's crash number {count} (asyncpool_max_crashes): it is given up."
        return Tell(job, Report.GIVEN_UP, text)

    # All of them.

    def drop_queued(self) -> list[Effect]:
        """Forget what no process has: the broker will deliver it again."""
        effects: list[Effect] = []
        for job in self.dispatcher.drop_queued():
            effects += self._discard(job)
        return effects + self._tell_waiting()

    def drop_waiting(self) -> list[Effect]:
        """Likewise what waits for its cap, as what waits for a slot in Celery's consumer."""
        effects: list[Effect] = []
        for job in self.dispatcher.caps.drop_waiting():
            effects += self._discard(job)
        return effects + self._tell_waiting()

    def abandon(self) -> None:
        """Cold shutdown: forget all jobs; only an outcome that a process reports is still told.

        What reports none, as a body that is ended now, is delivered again, or is lost.
        """
        for job in self._jobs.values():
            self.backstops.clear(job.id)
        self._jobs.clear()
        self._asked.clear()
        for held in self._held.values():
            self._abandoned.update((job_id, (job, [])) for job_id, job in held.jobs.items())
            held.jobs.clear()

    # Ends.

    def _terminated(self, job: Job) -> list[Effect]:
        return [Tell(job, Report.TERMINATED)] if job.set_terminated() else []

    def _timed_out(self, job: Job, report: Report, stack: str) -> list[Effect]:
        return [*self._hard_limit(job), Tell(job, report, stack)] if job.time_out() else []

    def _hard_limit(self, job: Job) -> list[Effect]:
        """It is over: told once, whoever has noticed it."""
        if job.hard_is_told:
            return []
        job.hard_is_told = True
        return [Tell(job, Report.HARD_LIMIT)]

    def _discard(self, job: Job) -> list[Effect]:
        job.discard()
        return self._end(job)

    def _end(self, job: Job) -> list[Effect]:
        """The job has ended and its slot is free: the last thing that happens to it.

        Its slot goes to the job that has waited for its place in a cap.
        """
        self.backstops.clear(job.id)
        if self._jobs.pop(job.id, None) is None:
            return []
        successor = self.dispatcher.leave(job)
        free = [] if job.waits or successor is not None else self._free_slot()
        return [*free, *self._tell_waiting()]

    def _free_slot(self) -> list[Effect]:
        """After a shrink, a slot may not be there any more."""
        self.slots_taken -= 1
        return [SlotFree()] if self.slots_taken < self.limit else []

    def _tell_waiting(self) -> list[Effect]:
        waiting = self.dispatcher.caps.waiting
        if waiting == self._told_waiting:
            return []
        self._told_waiting = waiting
        return [Waiting(waiting)]
