"""What is, against what should be.

:func:`plan` is level-triggered: it looks at all processes and says what to do
now, so that a missed event heals at the next look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from typing import NamedTuple

from .lifecycle import Lifecycle, State

__all__ = ["Backoff", "Plan", "RestartBudget", "number_for_new", "plan", "spread"]


def spread(slots: int, processes: int) -> tuple[int, int]:
    """Spread *slots* over at most *processes*: how many of them, and slots for each.

    Never more processes than slots; all together have at least *slots*.
    """
    number = min(slots, processes)
    return number, -(-slots // number) if number else 0


def number_for_new(target: int, serving: set[int], leaving: set[int]) -> int:
    """The number, from 0 on, of a new process: the lowest that no other has.

    While processes are replaced there are more than *target*, the number of those
    that should serve. Numbers do not go up for it by more than one: above that, a
    new process has the number of one that is leaving.
    """
    number = _lowest_not_in(serving | leaving)
    return number if number <= target else _lowest_not_in(serving)


def _lowest_not_in(numbers: set[int]) -> int:
    return next(number for number in count() if number not in numbers)


class Plan(NamedTuple):
    """What the supervisor has to do."""

    #: How many processes to start.
    spawn: int
    #: Processes that are no longer needed: they get no more jobs.
    drain: list[int]
    #: Processes that did not come up, or go away, in time.
    kill: list[int]


def _no_load(pid: int) -> int:
    return 0


def plan(
    target: int,
    processes: Iterable[Lifecycle],
    now: float,
    load: Callable[[int], int] = _no_load,
) -> Plan:
    """Say what to do so that *target* processes take jobs.

    A process that is to be replaced takes jobs until a spare one is up, and is
    drained then: replacing costs no capacity. One spare at a time is started,
    and none while as many as *target* are draining already, so that long tasks
    never make the memory of the worker grow beyond twice what it is.

    *load*: the jobs in flight of a process, by its pid; where there are more
    processes than wanted, the one with the fewest goes.
    """
    lives = list(processes)
    kill = [life.pid for life in lives if life.is_overdue(now)]
    alive = [life for life in lives if life.pid not in kill]
    up = [life for life in alive if life.state is State.UP]
    serving = sum(1 for life in alive if life.serves)
    draining = sum(1 for life in alive if life.state is State.DRAINING)
    to_replace = any(life.retiring for life in up)
    spare = 1 if to_replace and draining < target else 0
    surplus = sorted(up, key=lambda life: (not life.retiring, load(life.pid)))
    return Plan(
        spawn=max(0, target + spare - serving),
        drain=[life.pid for life in surplus[: max(0, len(up) - target)]],
        kill=kill,
    )


class RestartBudget:
    """How often processes may fail to start, in a row, before the worker gives up.

    All processes that are wanted failing once is one time, not many: eight that share
    a bad moment are tried again as one would be.

    Arguments:
        limit: times that they may fail; one more is too many.
    """

    __slots__ = ("failures", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        #: Processes that have failed since the last one that started.
        self.failures = 0

    def on_failure(self, wanted: int) -> bool:
        """One more of *wanted* processes has failed; False when the budget is used up."""
        self.failures += 1
        return self.failures <= self.limit * wanted

    def on_success(self) -> None:
        """One has started."""
        self.failures = 0


class Backoff:
    """When to try again what the system has refused.

    Arguments:
        first: seconds after the first failure; each further one doubles it.
        most: seconds at most.
    """

    __slots__ = ("_delay", "_not_before", "first", "most")

    def __init__(self, first: float, most: float) -> None:
        self.first = first
        self.most = most
        self._delay = 0.0
        self._not_before = 0.0

    def may_try(self, now: float) -> bool:
        """Whether it is time."""
        return not self._delay or now >= self._not_before

    def on_failure(self, now: float) -> float:
        """It failed at *now*; return the seconds until the next try.

        What fails before that is of the same try.
        """
        if self._delay and now < self._not_before:
            return self._not_before - now
        self._delay = min(self._delay * 2, self.most) if self._delay else self.first
        self._not_before = now + self._delay
        return self._delay

    def on_success(self) -> None:
        """It works again."""
        self._delay = 0.0
