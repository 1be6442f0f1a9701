"""What is, against what should be.

:func:`plan` is level-triggered: it looks at all processes and says what to do
now, so that a missed event heals at the next look.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from .lifecycle import Lifecycle

__all__ = ["Plan", "RestartBudget", "plan"]


class Plan(NamedTuple):
    """What the supervisor has to do."""

    #: How many processes to start.
    spawn: int
    #: Processes that did not come up, or go away, in time.
    kill: list[int]


def plan(target: int, processes: Iterable[Lifecycle], now: float) -> Plan:
    """Say what to do so that *target* processes take jobs.

    Draining processes keep running but no longer count: a replacement is
    started first, so that retiring one never costs capacity.
    """
    lives = list(processes)
    kill = [life.pid for life in lives if life.is_overdue(now)]
    serving = sum(1 for life in lives if life.serves and life.pid not in kill)
    return Plan(spawn=max(0, target - serving), kill=kill)


class RestartBudget:
    """How many processes may fail to start before the worker gives up.

    Arguments:
        limit: failures allowed within *period*; one more is too many.
        period: seconds.
    """

    __slots__ = ("_failures", "limit", "period")

    def __init__(self, limit: int, period: float) -> None:
        self.limit = limit
        self.period = period
        self._failures: deque[float] = deque()

    def on_failure(self, now: float) -> bool:
        """One more has failed at *now*; False when the budget is used up."""
        self._failures.append(now)
        while self._failures[0] <= now - self.period:
            self._failures.popleft()
        return len(self._failures) <= self.limit

    @property
    def failures(self) -> int:
        """Failures within the period, at the last failure."""
        return len(self._failures)
