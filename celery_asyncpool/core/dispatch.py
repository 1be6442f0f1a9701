"""Which process gets the next job.

Jobs wait in order of arrival. The next one goes to the process with the fewest
jobs in flight that has a free slot; a process that drains gets nothing, and one
whose pipe is full gets nothing until it reads again. A quarantined job (see
:mod:`.crashes`) waits apart for a process that has no other such job, and one
whose cap has no place (see :mod:`.caps`) waits apart for that. To assign a job
costs O(processes), never O(jobs).
"""

from __future__ import annotations

import bisect
import operator
from collections import deque
from collections.abc import Iterator

from .caps import Caps
from .job import Job

__all__ = ["Dispatcher"]

#: Jobs are numbered in order of arrival.
_arrival = operator.attrgetter("id")


class Dispatcher:
    """The queue of jobs and the load of each process.

    Arguments:
        slots: jobs that one process may have in flight.
        limit: jobs that all together may have in flight; by default what the
            processes' slots add up to.
        caps: how many of some tasks may run at once; by default there are none.
    """

    __slots__ = (
        "_held",
        "_in_flight",
        "_let_in",
        "_load",
        "_open",
        "_quarantine",
        "_queue",
        "_returned",
        "_suspects",
        "caps",
        "limit",
        "slots",
    )

    def __init__(self, slots: int, limit: int | None = None, caps: Caps | None = None) -> None:
        self.slots = slots
        self.limit = limit
        self.caps = caps if caps is not None else Caps()
        self._in_flight = 0
        self._queue: deque[Job] = deque()
        #: Jobs that had to wait for their caps and do no longer, in order of arrival.
        self._let_in: deque[Job] = deque()
        #: Jobs that processes gave back.
        self._returned: deque[Job] = deque()
        self._load: dict[int, int] = {}
        self._open: set[int] = set()
        #: Processes that would be open, did their pipes have room.
        self._held: set[int] = set()
        self._quarantine: deque[Job] = deque()
        #: The quarantined job that each process has, by pid.
        self._suspects: dict[int, Job] = {}

    def __repr__(self) -> str:
        capacity = self.slots * len(self._open)
        return f"<Dispatcher {self.queued} queued, {self._in_flight}/{capacity} slots>"

    def resize(self, slots: int, limit: int) -> None:
        """From now on a process may have *slots* jobs in flight, all together *limit*.

        What is in flight beyond that stays there until it ends.
        """
        self.slots = slots
        self.limit = limit

    def add_process(self, pid: int) -> None:
        """Process *pid* is up: it takes jobs from now on."""
        self._load.setdefault(pid, 0)
        self._open.add(pid)

    def close_process(self, pid: int) -> None:
        """Process *pid* drains: it gets no more jobs; its slots still count."""
        self._open.discard(pid)
        self._held.discard(pid)

    def hold(self, pid: int) -> None:
        """The pipe of process *pid* is full: it gets no jobs until :meth:`resume`."""
        if pid in self._open:
            self._open.discard(pid)
            self._held.add(pid)

    def resume(self, pid: int) -> None:
        """The pipe of process *pid* has room again."""
        if pid in self._held:
            self._held.discard(pid)
            self._open.add(pid)

    def remove_process(self, pid: int) -> None:
        """Process *pid* is gone, and its slots with it."""
        self.close_process(pid)
        self._suspects.pop(pid, None)
        self._in_flight -= self._load.pop(pid, 0)

    def enqueue(self, job: Job) -> None:
        """*job* waits behind all others, or apart for its cap, as ``job.waits`` says then."""
        self.caps.enter(job)
        if not job.waits:
            (self._quarantine if job.quarantined else self._queue).append(job)

    def requeue(self, jobs: list[Job]) -> None:
        """*jobs* were given back by a process: they wait before all others."""
        for job in reversed(jobs):
            (self._quarantine if job.quarantined else self._returned).appendleft(job)

    def leave(self, job: Job) -> Job | None:
        """*job* has ended, wherever it was, and leaves its cap.

        Returns the job that has waited for that and waits for a process now,
        before all that came after it.
        """
        successor = self.caps.leave(job)
        if successor is not None and successor.quarantined:
            self._quarantine.append(successor)
        elif successor is not None:
            bisect.insort(self._let_in, successor, key=_arrival)
        return successor

    def assign(self) -> Iterator[Job]:
        """Give waiting jobs to processes while slots are free; yield each one.

        The job's ``pid`` says where it goes. Jobs that ended while they waited
        are dropped here, so that ending one costs no search.
        """
        for quarantined in (True, False):
            while queue := self._quarantine if quarantined else self._first_in_line():
                if not queue[0].is_queued:
                    queue.popleft()
                    continue
                pid = self._least_loaded(quarantined)
                if pid is None or self._is_full:
                    break
                job = queue.popleft()
                self._load[pid] += 1
                self._in_flight += 1
                if quarantined:
                    self._suspects[pid] = job
                job.assign(pid)
                yield job

    def release(self, job: Job) -> None:
        """*job* has ended in the process that it was assigned to: its slot is free."""
        pid = job.pid
        if pid not in self._load or pid is None:
            return
        self._load[pid] -= 1
        self._in_flight -= 1
        if self._suspects.get(pid) is job:
            del self._suspects[pid]

    def drop_queued(self) -> list[Job]:
        """Empty the queue; return the jobs that still waited, those for their caps first."""
        waiting = [job for job in self.caps.drop_waiting() if job.is_queued]
        lines = (self._quarantine, self._returned, self._let_in, self._queue)
        jobs = [job for line in lines for job in line if job.is_queued]
        for line in lines:
            line.clear()
        return waiting + jobs

    def load(self, pid: int) -> int:
        """Jobs in flight in process *pid*."""
        return self._load.get(pid, 0)

    def in_flight(self) -> int:
        """Jobs in flight in all processes."""
        return self._in_flight

    @property
    def queued(self) -> int:
        """Jobs that wait for a process (ended ones that were not dropped yet included)."""
        lines = (self._quarantine, self._returned, self._let_in, self._queue)
        return sum(map(len, lines))

    @property
    def _is_full(self) -> bool:
        return self.limit is not None and self._in_flight >= self.limit

    def _first_in_line(self) -> deque[Job]:
        """Those who were given back; else the line whose first job came before the other's."""
        if self._returned:
            return self._returned
        if self._let_in and not (self._queue and self._queue[0].id < self._let_in[0].id):
            return self._let_in
        return self._queue

    def _least_loaded(self, quarantined: bool) -> int | None:
        best, least = None, self.slots
        for pid in self._open:
            load = self._load[pid]
            if load < least and not (quarantined and pid in self._suspects):
                best, least = pid, load
        return best
