"""Which process gets the next job.

Jobs wait in order of arrival. The next one goes to the process with the fewest
jobs in flight that has a free slot; a process that drains gets nothing. To
assign a job costs O(processes), never O(jobs).
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

    __slots__ = ("_in_flight", "_load", "_open", "_queue", "limit", "slots")

    def __init__(self, slots: int, limit: int | None = None) -> None:
        self.slots = slots
        self.limit = limit
        self._in_flight = 0
        self._queue: deque[Job] = deque()
        self._load: dict[int, int] = {}
        self._open: set[int] = set()

    def __repr__(self) -> str:
        capacity = self.slots * len(self._open)
        return f"<Dispatcher {len(self._queue)} queued, {self._in_flight}/{capacity} slots>"

    def add_process(self, pid: int) -> None:
        """Process *pid* is up: it takes jobs from now on."""
        self._load.setdefault(pid, 0)
        self._open.add(pid)

    def close_process(self, pid: int) -> None:
        """Process *pid* drains: it gets no more jobs; its slots still count."""
        self._open.discard(pid)

    def remove_process(self, pid: int) -> None:
        """Process *pid* is gone, and its slots with it."""
        self._open.discard(pid)
        self._in_flight -= self._load.pop(pid, 0)

    def enqueue(self, job: Job) -> None:
        """*job* waits behind all others."""
        self._queue.append(job)

    def requeue(self, jobs: list[Job]) -> None:
        """*jobs* were given back by a process: they wait before all others."""
        self._queue.extendleft(reversed(jobs))

    def assign(self) -> Iterator[Job]:
        """Give waiting jobs to processes while slots are free; yield each one.

        The job's ``pid`` says where it goes. Jobs that ended while they waited
        are dropped here, so that ending one costs no search.
        """
        queue = self._queue
        while queue:
            if not queue[0].is_queued:
                queue.popleft()
                continue
            pid = self._least_loaded()
            if pid is None or self._in_flight == self.limit:
                return
            job = queue.popleft()
            self._load[pid] += 1
            self._in_flight += 1
            job.assign(pid)
            yield job

    def release(self, pid: int) -> None:
        """A job of process *pid* has ended: its slot is free."""
        if pid in self._load:
            self._load[pid] -= 1
            self._in_flight -= 1

    def drop_queued(self) -> list[Job]:
        """Empty the queue; return the jobs that still waited in it."""
        jobs = [job for job in self._queue if job.is_queued]
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
        return len(self._queue)

    def _least_loaded(self) -> int | None:
        best, least = None, self.slots
        for pid in self._open:
            load = self._load[pid]
            if load < least:
                best, least = pid, load
        return best
