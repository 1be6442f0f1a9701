"""How many tasks of a kind may run at once.

A *cap* is for all tasks together whose names match its pattern. A job enters
before it waits for a process, and has a place until it has ended, however it
ends. One that finds no place waits apart, in order of arrival, and holds up
nobody: not the jobs behind it, and no slot of the worker.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from .job import Job

__all__ = ["Cap", "Caps"]


class Cap:
    """At most *limit* of the tasks that match *pattern* run at once."""

    __slots__ = ("limit", "pattern", "running", "waiting")

    def __init__(self, pattern: str, limit: int) -> None:
        self.pattern = pattern
        self.limit = limit
        #: The jobs that have a place, by id.
        self.running: set[int] = set()
        #: The jobs that wait for one, in order of arrival.
        self.waiting: OrderedDict[int, Job] = OrderedDict()

    def __repr__(self) -> str:
        return (
            f"<Cap {self.pattern!r} {len(self.running)}/{self.limit} running, "
            f"{len(self.waiting)} waiting>"
        )


class Caps:
    """The caps of one worker; a task has one at most.

    Arguments:
        limits: patterns and how many may run at once. The cap whose pattern is
            a task's very name is the task's; else the first one that matches.
    """

    __slots__ = ("_by_name", "_by_pattern", "waiting")

    def __init__(self, limits: Iterable[tuple[str, int]] = ()) -> None:
        self._by_pattern = {pattern: Cap(pattern, limit) for pattern, limit in limits}
        #: What was found before, by the task's name.
        self._by_name: dict[str, Cap | None] = {}
        #: Jobs that wait for a place, of all caps together.
        self.waiting = 0

    def __iter__(self) -> Iterator[Cap]:
        return iter(self._by_pattern.values())

    def find(self, name: str) -> Cap | None:
        """The cap of the task *name*, None where it has none."""
        if not self._by_pattern:
            return None
        if name not in self._by_name:
            self._by_name[name] = self._by_pattern.get(name) or self._first_match(name)
        return self._by_name[name]

    def _first_match(self, name: str) -> Cap | None:
        for pattern, cap in self._by_pattern.items():
            if fnmatchcase(name, pattern):
                return cap
        return None

    def unused(self, names: Iterable[str]) -> list[str]:
        """The patterns that are the cap of none of the tasks *names*."""
        used = {cap.pattern for cap in map(self.find, names) if cap is not None}
        return [pattern for pattern in self._by_pattern if pattern not in used]

    def enter(self, job: Job) -> None:
        """*job* takes a place, or waits for one, as ``job.waits`` says then."""
        cap = self.find(job.name)
        if cap is None:
            return
        if len(cap.running) < cap.limit:
            cap.running.add(job.id)
            return
        job.waits = True
        cap.waiting[job.id] = job
        self.waiting += 1

    def leave(self, job: Job) -> Job | None:
        """*job* has ended, with a place or waiting; return the one that takes its place.

        Harmless when repeated.
        """
        cap = self.find(job.name)
        if cap is None:
            return None
        if cap.waiting.pop(job.id, None) is not None:
            self.waiting -= 1
            return None
        if job.id not in cap.running:
            return None
        cap.running.discard(job.id)
        if not cap.waiting:
            return None
        _, successor = cap.waiting.popitem(last=False)
        self.waiting -= 1
        successor.waits = False
        cap.running.add(successor.id)
        return successor

    def drop_waiting(self) -> list[Job]:
        """Nobody waits any more; return those who did, in order of arrival."""
        dropped = [job for cap in self._by_pattern.values() for job in cap.waiting.values()]
        for cap in self._by_pattern.values():
            cap.waiting.clear()
        self.waiting = 0
        return sorted(dropped, key=lambda job: job.id)
