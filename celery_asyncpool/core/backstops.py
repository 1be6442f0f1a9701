"""When the process of a job must have said something of its end.

A process tells by itself that a body's time is over. The parent's own clock is
for those that cannot: it waits a little longer, and is set anew or cleared by
whatever the process says.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

__all__ = ["Backstops"]


#: Entries that count no more and may be kept beside those that do.
SPARE = 64


class Backstops:
    """One time for each job that has one; monotonic seconds.

    What it keeps is bounded by the jobs that have one, however far their times are.
    """

    __slots__ = ("_heap", "_when")

    def __init__(self) -> None:
        #: Times and job ids; an entry counts while it is the job's latest.
        self._heap: list[tuple[float, int]] = []
        self._when: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._when)

    def set(self, job_id: int, when: float) -> None:
        """The job's time is *when*, whatever it was before."""
        self._when[job_id] = when
        heapq.heappush(self._heap, (when, job_id))
        # Without this, each ended job stays here until its time would have been over.
        if len(self._heap) > 2 * len(self._when) + SPARE:
            self._heap = [(when, job_id) for job_id, when in self._when.items()]
            heapq.heapify(self._heap)

    def clear(self, job_id: int) -> None:
        """The job has no time any more; harmless when it had none."""
        self._when.pop(job_id, None)

    def due(self, now: float) -> Iterator[int]:
        """Yield the jobs whose time is over at *now*, each once; clears their times."""
        while self._heap and self._heap[0][0] <= now:
            when, job_id = heapq.heappop(self._heap)
            if self._when.get(job_id) == when:
                del self._when[job_id]
                yield job_id
