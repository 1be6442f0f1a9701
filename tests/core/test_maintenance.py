"""celery_asyncpool/core/maintenance.py: what is, against what should be."""

from __future__ import annotations

import pytest

from celery_asyncpool.core.lifecycle import Lifecycle
from celery_asyncpool.core.maintenance import (
    Backoff,
    Plan,
    RestartBudget,
    number_for_new,
    plan,
    spread,
)


def starting(pid: int, *, since: float = 0.0) -> Lifecycle:
    return Lifecycle(pid, now=since, start_timeout=4.0)


def up(pid: int) -> Lifecycle:
    life = starting(pid)
    life.on_up()
    return life


def draining(pid: int) -> Lifecycle:
    life = up(pid)
    life.drain()
    return life


def retiring(pid: int) -> Lifecycle:
    life = up(pid)
    life.retire("it is old")
    return life


def stopping(pid: int, *, since: float) -> Lifecycle:
    life = up(pid)
    life.stop(now=since, timeout=2.0)
    return life


def without_pipe(pid: int, *, since: float) -> Lifecycle:
    life = up(pid)
    life.on_eof(now=since, timeout=2.0)
    return life


def test_plan_at_start():
    """Without a process, all are started."""
    assert plan(4, [], now=0.0) == Plan(spawn=4, drain=[], kill=[])


def test_plan_when_all_is_well():
    """Processes that are up or on their way are enough."""
    assert plan(2, [up(1), starting(2)], now=1.0) == Plan(spawn=0, drain=[], kill=[])


def test_plan_does_not_change_what_it_looks_at():
    """The same look at the same processes says the same again."""
    lives = [starting(1), draining(2)]

    first, second = plan(2, lives, now=5.0), plan(2, lives, now=5.0)

    assert first == second == Plan(spawn=2, drain=[], kill=[1])


def test_plan_takes_any_iterable():
    """Processes may come from a generator."""
    assert plan(2, (life for life in [starting(1)]), now=9.0) == Plan(spawn=2, drain=[], kill=[1])


def test_plan_with_draining_process():
    """A process that drains is replaced while it still runs."""
    assert plan(2, [up(1), draining(2)], now=100.0) == Plan(spawn=1, drain=[], kill=[])


def test_plan_with_draining_process_and_its_replacement():
    """A process that drains is replaced once, and left in peace."""
    assert plan(1, [draining(1), starting(2)], now=1.0) == Plan(spawn=0, drain=[], kill=[])


def test_plan_with_process_that_does_not_start():
    """A process that does not come up in time is killed and replaced."""
    assert plan(1, [starting(1, since=10.0)], now=13.9) == Plan(spawn=0, drain=[], kill=[])
    assert plan(1, [starting(1, since=10.0)], now=14.0) == Plan(spawn=1, drain=[], kill=[1])


def test_plan_with_process_that_does_not_stop():
    """A process that stops counts no more at once, and is killed when it is late."""
    life = stopping(1, since=10.0)

    assert plan(1, [life], now=11.0) == Plan(spawn=1, drain=[], kill=[])
    assert plan(0, [life], now=12.0) == Plan(spawn=0, drain=[], kill=[1])


def test_plan_with_process_without_pipe():
    """A process that has lost its pipe and stays is killed and replaced."""
    life = without_pipe(1, since=10.0)

    assert plan(1, [life], now=11.0) == Plan(spawn=0, drain=[], kill=[])
    assert plan(1, [life], now=12.0) == Plan(spawn=1, drain=[], kill=[1])


def test_plan_with_too_many_processes():
    """More processes than wanted start none, and the idlest go."""
    load = {1: 5, 2: 0, 3: 3}

    to_do = plan(1, [up(1), up(2), up(3)], now=1.0, load=load.__getitem__)

    assert to_do == Plan(spawn=0, drain=[2, 3], kill=[])


def test_plan_with_process_to_replace():
    """A process that is to be replaced takes jobs until a spare one is up, and goes then."""
    old = retiring(1)

    assert plan(1, [old], now=1.0) == Plan(spawn=1, drain=[], kill=[])
    assert plan(1, [old, starting(2)], now=1.0) == Plan(spawn=0, drain=[], kill=[])
    assert plan(1, [old, up(2)], now=1.0) == Plan(spawn=0, drain=[1], kill=[])


def test_plan_replaces_one_at_a_time():
    """However many are to be replaced, one spare process is started at a time."""
    lives = [retiring(1), retiring(2), retiring(3)]

    assert plan(3, lives, now=1.0) == Plan(spawn=1, drain=[], kill=[])
    assert plan(3, [*lives, starting(4)], now=1.0) == Plan(spawn=0, drain=[], kill=[])
    assert plan(3, [*lives, up(4)], now=1.0) == Plan(spawn=0, drain=[1], kill=[])


def test_plan_replaces_no_more_than_it_has_while_the_old_ones_drain():
    """Long tasks in old processes do not make the worker ever bigger."""
    lives = [retiring(1), up(2), draining(3), draining(4)]

    assert plan(2, lives, now=1.0) == Plan(spawn=0, drain=[], kill=[])
    assert plan(2, lives[:3], now=1.0) == Plan(spawn=1, drain=[], kill=[])


def test_plan_to_replace_and_to_shrink():
    """Where fewer are wanted, those that are to be replaced go first, without a spare."""
    lives = [up(1), retiring(2), up(3)]

    assert plan(2, lives, now=1.0) == Plan(spawn=0, drain=[2], kill=[])


@pytest.mark.parametrize(
    ("slots", "processes", "expected"),
    [
        (100, 4, (4, 25)),
        (10, 4, (4, 3)),
        (2, 4, (2, 1)),
        (1, 1, (1, 1)),
        (1000, 3, (3, 334)),
        (0, 4, (0, 0)),
    ],
)
def test_spread(slots, processes, expected):
    """Never more processes than slots, and enough slots in all."""
    assert spread(slots, processes) == expected


def test_backoff():
    """Each failure doubles the wait, up to the most; a success ends it."""
    backoff = Backoff(first=1.0, most=4.0)
    assert backoff.may_try(0.0)

    assert [backoff.on_failure(now) for now in (10.0, 11.0, 13.0, 17.0)] == [1.0, 2.0, 4.0, 4.0]

    assert not backoff.may_try(20.9)
    assert backoff.may_try(21.0)
    backoff.on_success()
    assert backoff.may_try(10.0)
    assert backoff.on_failure(20.0) == 1.0


def test_backoff_of_several_at_once():
    """What fails before the next try is of the same try: it makes nobody wait longer."""
    backoff = Backoff(first=1.0, most=30.0)

    assert [backoff.on_failure(now) for now in (10.0, 10.0, 10.5)] == [1.0, 1.0, 0.5]
    assert backoff.on_failure(11.0) == 2.0


def test_plan_at_the_end():
    """When none is wanted, none is started, all go, and only the late are killed."""
    lives = [up(1), draining(2), stopping(3, since=0.0), starting(4)]

    assert plan(0, lives, now=3.0) == Plan(spawn=0, drain=[1], kill=[3])


def test_budget_lasts_for_its_limit():
    """As many failures in a row as the limit are allowed; one more is too many."""
    budget = RestartBudget(limit=3)

    answers = [budget.on_failure(wanted=1) for _ in range(4)]

    assert answers == [True, True, True, False]
    assert budget.failures == 4


def test_budget_counts_rounds():
    """Eight processes that fail once each have failed once."""
    budget = RestartBudget(limit=2)

    answers = [budget.on_failure(wanted=8) for _ in range(17)]

    assert answers == [True] * 16 + [False]


def test_budget_after_a_success():
    """In a row means in a row."""
    budget = RestartBudget(limit=3)

    for _ in range(100):
        assert budget.on_failure(wanted=1)
        assert budget.on_failure(wanted=1)
        budget.on_success()

    assert budget.failures == 0


def test_budget_of_nothing():
    """With a limit of 0 the first failure is too many."""
    assert RestartBudget(limit=0).on_failure(wanted=1) is False


@pytest.mark.parametrize(
    ("serving", "leaving", "number"),
    [
        (set(), set(), 0),
        ({0}, set(), 1),
        ({1, 2}, set(), 0),
        ({0, 1, 2}, set(), 3),
        ({1}, {0}, 2),
        ({0, 1, 2}, {3}, 4),
        ({1, 2, 3}, {0, 4}, 0),  # five at once: the new one shares with one that leaves
        ({1, 2, 3}, {0, 4, 5, 6}, 0),
    ],
)
def test_number_of_a_new_process(serving, leaving, number):
    """The lowest free one; with four processes wanted, never one above 4."""
    assert number_for_new(4, serving, leaving) == number
