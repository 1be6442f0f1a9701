"""celery_asyncpool/core/timelimits.py: a body's time, told by a clock that is an argument."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_asyncpool.core.timelimits import (
    Action,
    BodyClock,
    BodyState,
    Limits,
    Verdict,
    check_limits,
)

GRACE = 5.0


def clock_in(state: BodyState, *, soft: float | None = 10.0, hard: float | None = 20.0):
    """A clock in *state*; its body, if any, started at 100."""
    clock = BodyClock(Limits(soft, hard), GRACE)
    if state is BodyState.WAITING:
        return clock
    clock.start(100.0)
    if state in {BodyState.CANCELLED, BodyState.DETACHED}:
        clock.terminate(105.0)
    if state is BodyState.DETACHED:
        clock.poll(110.0)
    if state is BodyState.ENDED:
        clock.end()
    assert clock.state is state
    return clock


def everything(clock: BodyClock) -> tuple[object, ...]:
    return tuple(getattr(clock, name) for name in BodyClock.__slots__)


# Its states.


def test_clock_through_a_life_without_limits():
    """A body without limits starts and ends, and nothing is ever due."""
    clock = BodyClock(Limits(), GRACE)
    seen = [repr(clock)]

    started = clock.start(100.0)
    seen.append(repr(clock))
    due = clock.next_due(), clock.poll(math.inf)
    clock.end()
    seen.append(repr(clock))

    assert started is True
    assert due == (None, None)
    assert seen == [
        "<BodyClock waiting, verdict: none>",
        "<BodyClock running, verdict: none>",
        "<BodyClock ended, verdict: none>",
    ]


@pytest.mark.parametrize("state", [state for state in BodyState if state is not BodyState.WAITING])
def test_start_twice(state):
    """A body starts once: a second start is our bug, and changes nothing."""
    clock = clock_in(state)
    before = everything(clock)

    with pytest.raises(AssertionError, match=rf"<BodyClock {state.value}, .*> cannot start"):
        clock.start(200.0)

    assert everything(clock) == before


@pytest.mark.parametrize(
    ("state", "new"),
    [
        (BodyState.WAITING, BodyState.ENDED),
        (BodyState.RUNNING, BodyState.ENDED),
        (BodyState.CANCELLED, BodyState.ENDED),
        (BodyState.ENDED, BodyState.ENDED),
        (BodyState.DETACHED, BodyState.DETACHED),
    ],
)
def test_end_in_every_state(state, new):
    """A body may end at any time and twice; one that was given up stays so."""
    clock = clock_in(state)
    verdict = clock.verdict

    clock.end()
    clock.end()

    assert clock.state is new
    assert clock.verdict is verdict
    assert clock.is_detached is (new is BodyState.DETACHED)


@pytest.mark.parametrize("state", [BodyState.WAITING, BodyState.DETACHED, BodyState.ENDED])
def test_nothing_is_due_in_a_body_that_does_not_run(state):
    """A body that has not started, was given up or has ended is left alone for ever."""
    clock = clock_in(state)
    before = everything(clock)

    assert clock.next_due() is None
    assert clock.poll(math.inf) is None
    assert everything(clock) == before


# Its limits.


def test_limits_count_from_the_start():
    """However long a body has waited, its limits begin with its start."""
    clock = BodyClock(Limits(10.0, 20.0), GRACE)
    clock.poll(1000.0)

    clock.start(2000.0)

    assert clock.next_due() == 2010.0
    assert clock.poll(2009.9) is None
    assert clock.poll(2010.0) is Action.SOFT_LIMIT
    assert clock.next_due() == 2020.0
    assert clock.poll(2019.9) is None
    assert clock.poll(2020.0) is Action.HARD_LIMIT


def test_soft_limit():
    """The soft limit is told once, decides nothing, and the body runs on."""
    clock = clock_in(BodyState.RUNNING, hard=None)

    actions = [clock.poll(now) for now in (109.0, 110.0, 110.0, 111.0, math.inf)]

    assert actions == [None, Action.SOFT_LIMIT, None, None, None]
    assert repr(clock) == "<BodyClock running, verdict: none>"
    assert clock.next_due() is None


def test_hard_limit():
    """The hard limit cancels the body, decides its outcome, and starts the grace time."""
    clock = clock_in(BodyState.RUNNING, soft=None)

    actions = [clock.poll(now) for now in (119.0, 120.5, 120.5, 125.4)]

    assert actions == [None, Action.HARD_LIMIT, None, None]
    assert repr(clock) == "<BodyClock cancelled, verdict: hard time limit>"
    assert clock.next_due() == 125.5


@pytest.mark.parametrize("now", [120.0, 500.0])
def test_both_limits_are_over(now):
    """Who comes so late that both limits are over hears of the hard one alone."""
    clock = clock_in(BodyState.RUNNING)

    actions = [clock.poll(now), clock.poll(now), clock.poll(now + GRACE)]

    assert actions == [Action.HARD_LIMIT, None, Action.DETACH]


def test_both_limits_at_the_same_instant():
    """A soft limit that is over with the hard one is not told: the hard one wins."""
    clock = clock_in(BodyState.RUNNING, soft=10.0, hard=10.0)

    due = clock.next_due()
    actions = [clock.poll(110.0), clock.poll(110.0)]

    assert due == 110.0
    assert actions == [Action.HARD_LIMIT, None]
    assert clock.verdict is Verdict.HARD_LIMIT


def test_hard_limit_first():
    """A soft limit after the hard one never comes."""
    clock = clock_in(BodyState.RUNNING, soft=20.0, hard=10.0)

    actions = [clock.poll(now) for now in (110.0, 114.9, 115.0, 120.0)]

    assert actions == [Action.HARD_LIMIT, None, Action.DETACH, None]


def test_body_ends_after_its_soft_limit():
    """A body that makes use of its warning has no verdict."""
    clock = clock_in(BodyState.RUNNING)
    clock.poll(110.0)

    clock.end()

    assert clock.poll(120.0) is None
    assert repr(clock) == "<BodyClock ended, verdict: none>"


def test_body_ends_after_its_hard_limit():
    """The verdict stays, and the grace time is over with the body."""
    clock = clock_in(BodyState.RUNNING)
    clock.poll(120.0)

    clock.end()

    assert clock.poll(math.inf) is None
    assert repr(clock) == "<BodyClock ended, verdict: hard time limit>"


# A body that refuses to end.


@pytest.mark.parametrize("verdict", [Verdict.HARD_LIMIT, Verdict.TERMINATED])
def test_refusing_body(verdict):
    """A cancelled body that does not end in time is given up, once, and stays so."""
    clock = clock_in(BodyState.RUNNING)
    if verdict is Verdict.HARD_LIMIT:
        clock.poll(120.0)
    else:
        clock.terminate(120.0)

    actions = [clock.poll(now) for now in (124.9, 125.0, 125.0, math.inf)]
    clock.end()

    assert actions == [None, Action.DETACH, None, None]
    assert clock.is_detached
    assert repr(clock) == f"<BodyClock detached, verdict: {verdict.value}>"


def test_refusing_body_without_grace():
    """With a grace time of nothing the very next look gives a body up."""
    clock = BodyClock(Limits(hard=1.0), 0.0)
    clock.start(100.0)

    actions = [clock.poll(101.0), clock.poll(101.0)]

    assert actions == [Action.HARD_LIMIT, Action.DETACH]


# Its termination.


def test_terminate_before_start():
    """A body whose job was terminated before must not start; its limits never begin."""
    clock = clock_in(BodyState.WAITING)

    terminated = clock.terminate(50.0)
    started = clock.start(100.0)

    assert (terminated, started) == (True, False)
    assert clock.next_due() is None
    assert repr(clock) == "<BodyClock waiting, verdict: terminated>"


def test_terminate_while_running():
    """A running body is to be cancelled, and has the grace time to end."""
    clock = clock_in(BodyState.RUNNING)

    terminated = clock.terminate(103.0)

    assert terminated is True
    assert repr(clock) == "<BodyClock cancelled, verdict: terminated>"
    assert clock.next_due() == 108.0


def test_terminate_after_the_soft_limit():
    """A body that was warned can still be terminated."""
    clock = clock_in(BodyState.RUNNING)
    clock.poll(110.0)

    assert clock.terminate(111.0) is True
    assert clock.poll(115.9) is None
    assert clock.poll(120.0) is Action.DETACH


def test_terminate_after_the_hard_limit():
    """A body that the hard limit cancels keeps its verdict, and wins no time."""
    clock = clock_in(BodyState.RUNNING)
    clock.poll(120.0)
    before = everything(clock)

    assert clock.terminate(122.0) is False
    assert everything(clock) == before


@pytest.mark.parametrize("state", [BodyState.CANCELLED, BodyState.DETACHED, BodyState.ENDED])
def test_terminate_too_late(state):
    """To terminate what is cancelled or has ended has no effect."""
    clock = clock_in(state)
    before = everything(clock)

    assert clock.terminate(300.0) is False
    assert everything(clock) == before


@pytest.mark.parametrize("state", [BodyState.WAITING, BodyState.RUNNING])
def test_terminate_twice(state):
    """The second request to terminate is not news."""
    clock = clock_in(state)

    answers = [clock.terminate(101.0), clock.terminate(102.0)]

    assert answers == [True, False]
    assert clock.verdict is Verdict.TERMINATED


def test_terminate_before_start_and_end():
    """A job that was terminated while it waited ends without a body."""
    clock = clock_in(BodyState.WAITING)
    clock.terminate(50.0)

    clock.end()

    assert repr(clock) == "<BodyClock ended, verdict: terminated>"


# Limits that somebody has written down.


@pytest.mark.parametrize(
    ("soft", "hard", "limits"),
    [
        (None, None, Limits(None, None)),
        (0, 0.0, Limits(None, None)),
        (1, None, Limits(1, None)),
        (None, 0.5, Limits(None, 0.5)),
        (1, 2, Limits(1, 2)),
        (1.5, 1.6, Limits(1.5, 1.6)),
        (10, 0, Limits(10, None)),
        (0, 10, Limits(None, 10)),
        ("5", " 7.5 ", Limits(5, 7.5)),
        ("0", "0.0", Limits(None, None)),
    ],
)
def test_check_limits_that_are_good(soft, hard, limits):
    """None and 0 are no limit; else any numbers will do whose soft one is less."""
    assert check_limits(soft, hard, "task x") == limits


@pytest.mark.parametrize(
    "value", [-1, -0.5, math.nan, math.inf, -math.inf, True, "-5", "nan", "soon", "", [5], {}]
)
@pytest.mark.parametrize("name", ["soft_time_limit", "time_limit"])
def test_check_limits_that_are_bad(name, value):
    """The error names the limit, whose it is, what is allowed, and what it got."""
    values = {"soft_time_limit": None, "time_limit": None, name: value}

    with pytest.raises(ValueError, match="must be") as raised:
        check_limits(*values.values(), "task proj.fetch")

    assert str(raised.value) == (
        f"{name} of task proj.fetch must be a number of seconds above 0, got {value!r}"
    )


@pytest.mark.parametrize(("soft", "hard"), [(10, 10), (10, 9.5), ("10", "9.5")])
def test_check_limits_of_which_the_hard_one_comes_first(soft, hard):
    """A soft limit that could never be told is refused."""
    with pytest.raises(ValueError, match="must be less") as raised:
        check_limits(soft, hard, "task proj.fetch")

    assert str(raised.value) == (
        "soft_time_limit of task proj.fetch must be less than its time_limit, "
        f"got {soft!r} and {hard!r}"
    )


def test_false_is_no_limit():
    """False is equal to 0, which means none."""
    assert check_limits(False, False, "task x") == Limits()


def test_limits_are_values():
    """Limits are equal when both numbers are, and tell them."""
    assert Limits(1, 2) == Limits(1.0, 2.0)
    assert Limits(1, 2) != Limits(1, 3)
    assert Limits(1, 2) != (1, 2)
    assert repr(Limits(1, 2.5)) == "<Limits soft=1 hard=2.5>"


# Whatever happens in whatever order.

some_seconds = st.floats(0.001, 50.0)
some_limit = st.none() | some_seconds
steps = st.lists(
    st.tuples(
        st.sampled_from(["start", "poll", "poll", "poll when due", "terminate", "end"]),
        st.just(0.0) | some_seconds,
    ),
    max_size=30,
)


@settings(max_examples=1000, deadline=None)
@given(soft=some_limit, hard=some_limit, grace=some_seconds, steps=steps)
def test_clock_in_any_order_of_events(soft, hard, grace, steps):
    """One verdict at most, each action at most once, and all in their order."""
    clock = BodyClock(Limits(soft, hard), grace)
    now, started_at, cancelled_at = 100.0, None, None
    actions: list[Action] = []
    has_ended = False

    for step, seconds in steps:
        now += seconds
        before = clock.verdict
        action = None
        if step == "start" and clock.state is BodyState.WAITING:
            if clock.start(now):
                started_at = now
            else:
                assert clock.verdict is Verdict.TERMINATED
        elif step == "poll":
            due = clock.next_due()
            action = clock.poll(now)
            # It says when it has something to say, and has it then.
            assert (action is not None) is (due is not None and now >= due)
        elif step == "poll when due" and clock.next_due() is not None:
            due = clock.next_due()
            assert clock.state in {BodyState.RUNNING, BodyState.CANCELLED}
            if due > now:
                assert clock.poll(math.nextafter(due, 0.0)) is None
            now = max(now, due)
            action = clock.poll(now)
            assert action is not None
        elif step == "terminate":
            has_effect = clock.terminate(now)
            assert has_effect is (before is not clock.verdict)
            if has_effect:
                assert not has_ended
                assert clock.verdict is Verdict.TERMINATED
                cancelled_at = now if started_at is not None else None
        elif step == "end":
            was_detached = clock.is_detached
            clock.end()
            assert clock.is_detached is was_detached
            has_ended = True

        if action is not None:
            assert not has_ended
            assert action not in actions
            assert started_at is not None
            actions.append(action)
        if action is Action.SOFT_LIMIT:
            assert now >= started_at + soft
            assert clock.verdict is Verdict.NONE
        elif action is Action.HARD_LIMIT:
            assert now >= started_at + hard
            assert before is Verdict.NONE
            assert clock.verdict is Verdict.HARD_LIMIT
            cancelled_at = now
        elif action is Action.DETACH:
            assert now >= cancelled_at + grace
            assert clock.is_detached
        if before is not Verdict.NONE:
            assert clock.verdict is before
        if has_ended or clock.is_detached:
            assert clock.next_due() is None

    order = [Action.SOFT_LIMIT, Action.HARD_LIMIT, Action.DETACH]
    assert actions == [action for action in order if action in actions]


def test_limit_that_comes_later():
    """A body that was started without a limit, or with a longer one, has so long from then on."""
    clock = BodyClock(Limits(), grace=5.0)
    clock.start(0.0)
    clock.limit(10.0, 2.0)
    clock.limit(11.0, 20.0)

    assert clock.next_due() == 12.0
    assert clock.poll(11.9) is None
    assert clock.poll(12.0) is Action.HARD_LIMIT


def test_limit_that_comes_before_the_start():
    """It counts from the start, and makes no limit longer."""
    clock = BodyClock(Limits(hard=3.0), grace=5.0)
    clock.limit(0.0, 2.0)
    clock.limit(0.0, 9.0)
    clock.start(10.0)

    assert clock.next_due() == 12.0
