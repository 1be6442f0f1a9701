"""Which process gets the next job.

Jobs wait in order of arrival. The next one goes to the process with the fewest
jobs in flight that has a free slot; a process that drains gets nothing, and one
whose pipe is full gets nothing until it reads again. A quarantined job (see
:mod:`.crashes`) waits apart for a process that has no other such job. To assign
a job costs O(processes), never O(jobs).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from .job import Job

__all__ = ["Dispatcher"]


class Dispatcher:
    """The queue of jobs and the load of each process.

    Arguments:
        slots: jobs that one process may have in flight.
        limit: jobs that all together may have in flight; by default what the
            processes' slots add up to.
    """

    __slots__ = (
        "_held",
        "_in_flight",
        "_load",
        "_open",
        "_quarantine",
        "_queue",
        "_suspects",
        "limit",
        "slots",
    )

    def __init__(self, slots: int, limit: int | None = None) -> None:
        self.slots = slots
        self.limit = limit
        self._in_flight = 0
        self._queue: deque[Job] = deque()
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
        """*job* waits behind all others."""
        (self._quarantine if job.quarantined else self._queue).append(job)

    def requeue(self, jobs: list[Job]) -> None:
        """*jobs* were given back by a process: they wait before all others."""
        for job in reversed(jobs):
            (self._quarantine if job.quarantined else self._queue).appendleft(job)

    def assign(self) -> Iterator[Job]:
        """Give waiting jobs to processes while slots are free; yield each one.

        The job's ``pid`` says where it goes. Jobs that ended while they waited
        are dropped here, so that ending one costs no search.
        """
        for queue in (self._quarantine, self._queue):
            while queue:
                if not queue[0].is_queued:
                    queue.popleft()
                    continue
                pid = self._least_loaded(queue[0].quarantined)
                if pid is None or self._is_full:
                    break
                job = queue.popleft()
                self._load[pid] += 1
                self._in_flight += 1
                if job.quarantined:
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
        """Empty the queue; return the jobs that still waited in it."""
        jobs = [job for job in (*self._quarantine, *self._queue) if job.is_queued]
        self._quarantine.clear()
        self._queue.clear()
        return jobs

    def load(self, pid: int) -> int:
        """Jobs in flight in process *pid*."""
        return self._load.get(pid, 0)

    def in_flight(self) -> int:
        """Jobs in flight in all processes."""
        return self._in_flight

    @property
    def queued(self) -> int:
        """Jobs that wait (ended ones that were not dropped yet included)."""
        return len(self._queue) + len(self._quarantine)

    @property
    def _is_full(self) -> bool:
        return self.limit is not None and self._in_flight >= self.limit

    def _least_loaded(self, quarantined: bool) -> int | None:
        best, least = None, self.slots
        for pid in self._open:
            load = self._load[pid]
            if load < least and not (quarantined and pid in self._suspects):
                best, least = pid, load
        return best
