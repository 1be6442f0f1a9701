"""Which task takes its process down, again and again.

A process that dies takes all its jobs with it, and nobody can tell which of
them did it: each is a suspect. A job that is delivered again and dies with its
process for the last time that is allowed must have been the only suspect there:
so before its last attempt it is *quarantined*, which the dispatcher heeds by
giving a process one such job at a time. The neighbours of a poison task so end
well, one after the other, instead of being condemned with it.
"""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["Crashes"]

#: Tasks that are remembered; the oldest are forgotten first.
MOST = 10_000


class Crashes:
    """How often each task was in a process that died.

    Arguments:
        limit: so many crashes are too many.
    """

    __slots__ = ("_counts", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._counts: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def on_crash(self, task_id: str) -> int:
        """Its process died while it ran; return how often that has happened."""
        count = self._counts.pop(task_id, 0) + 1
        self._counts[task_id] = count
        if len(self._counts) > MOST:
            self._counts.popitem(last=False)
        return count

    def on_end(self, task_id: str) -> None:
        """It has ended by itself: it is no suspect any more."""
        self._counts.pop(task_id, None)

    def is_quarantined(self, task_id: str) -> bool:
        """Whether one more crash would be too many, so that it must not meet another such."""
        return self._counts.get(task_id, 0) >= max(self.limit - 1, 1)
