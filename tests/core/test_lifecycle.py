"""celery_asyncpool/core/lifecycle.py: a process's way, which has no way back."""

from __future__ import annotations

import math

import pytest

from celery_asyncpool.core.lifecycle import EDGES, Exit, Lifecycle, State, explain_exit

#: Each state as the call that asks for it.
CALLS = {
    State.DRAINING: lambda life: life.drain(),
    State.STOPPING: lambda life: life.stop(now=50.0, timeout=2.0),
    State.EXITED: lambda life: life.on_exit(0),
}

PAIRS = [(before, new) for before in State for new in CALLS]


def life_in(state: State) -> Lifecycle:
    life = Lifecycle(412, now=10.0, start_timeout=4.0)
    if state is State.UP:
        life.on_up()
    elif state is State.DRAINING:
        life.on_up()
        life.drain()
    elif state is State.STOPPING:
        life.stop(now=20.0, timeout=2.0)
    elif state is State.EXITED:
        life.on_exit(0)
    assert life.state is state
    return life


def everything(life: Lifecycle) -> tuple[object, ...]:
    return life.pid, life.state, life.deadline


def test_edges_are_monotone():
    """No edge leads back, and every state can become EXITED but EXITED itself."""
    order = list(State)

    assert set(EDGES) == set(State)
    for before, row in EDGES.items():
        assert all(order.index(new) > order.index(before) for new in row)
        assert (State.EXITED in row) is (before is not State.EXITED)


@pytest.mark.parametrize(
    ("before", "new"), [(before, new) for before, new in PAIRS if new in EDGES[before]]
)
def test_lifecycle_with_legal_edge(before, new):
    """A process goes along every edge of the table."""
    life = life_in(before)

    CALLS[new](life)

    assert repr(life) == f"<Lifecycle pid=412 {new.value}>"


@pytest.mark.parametrize(
    ("before", "new"), [(before, new) for before, new in PAIRS if new not in EDGES[before]]
)
def test_lifecycle_with_illegal_edge(before, new):
    """A change that cannot be is our bug: it raises, names both states, and changes nothing."""
    life = life_in(before)
    unchanged = everything(life)

    with pytest.raises(AssertionError) as raised:
        CALLS[new](life)

    assert everything(life) == unchanged
    assert str(raised.value) == f"<Lifecycle pid=412 {before.value}> cannot become {new.value}"


def test_lifecycle_comes_up():
    """A starting process that says it is up takes jobs and has no deadline."""
    life = life_in(State.STARTING)

    news = life.on_up()

    assert news is True
    assert life.takes_jobs
    assert not life.is_overdue(math.inf)


@pytest.mark.parametrize("state", [state for state in State if state is not State.STARTING])
def test_late_worker_up_is_ignored(state):
    """A process that is up or past it stays as it is when WORKER_UP arrives late."""
    life = life_in(state)
    unchanged = everything(life)

    news = life.on_up()

    assert news is False
    assert everything(life) == unchanged


@pytest.mark.parametrize("state", list(State))
def test_lifecycle_questions(state):
    """Only a process that is up takes jobs; one that starts counts as capacity already."""
    life = life_in(state)

    assert life.takes_jobs is (state is State.UP)
    assert life.serves is (state in {State.STARTING, State.UP})


def test_lifecycle_that_does_not_come_up():
    """A process that has not come up within its start timeout is overdue, not before."""
    life = Lifecycle(412, now=10.0, start_timeout=4.0)

    assert not life.is_overdue(13.9)
    assert life.is_overdue(14.0)


def test_lifecycle_that_does_not_stop():
    """A process that was stopped is overdue after the time it was given."""
    life = life_in(State.UP)

    life.stop(now=100.0, timeout=2.0)

    assert not life.is_overdue(101.9)
    assert life.is_overdue(102.0)


@pytest.mark.parametrize("state", [State.UP, State.DRAINING, State.EXITED])
def test_lifecycle_without_deadline(state):
    """A process may be up or drain for as long as it takes; one that is gone is never late."""
    life = life_in(state)

    assert not life.is_overdue(math.inf)


@pytest.mark.parametrize("state", [State.UP, State.DRAINING])
def test_lifecycle_whose_pipe_has_ended(state):
    """A process without a pipe stays in its state and must be gone in time."""
    life = life_in(state)

    life.on_eof(now=100.0, timeout=2.0)

    assert life.state is state
    assert not life.is_overdue(101.9)
    assert life.is_overdue(102.0)


@pytest.mark.parametrize("state", [State.STARTING, State.STOPPING, State.EXITED])
def test_lifecycle_whose_pipe_has_ended_with_a_deadline(state):
    """The end of its pipe gives no process more time than it had, and the dead none."""
    life = life_in(state)
    unchanged = everything(life)

    life.on_eof(now=100.0, timeout=2.0)

    assert everything(life) == unchanged


def test_lifecycle_whose_pipe_has_ended_twice():
    """The end of the pipe counts once: telling it again wins no time."""
    life = life_in(State.UP)
    life.on_eof(now=100.0, timeout=2.0)

    life.on_eof(now=101.0, timeout=2.0)

    assert life.is_overdue(102.0)


def test_drain_after_end_of_pipe():
    """A process that is drained after its pipe has ended must still be gone in time."""
    life = life_in(State.UP)
    life.on_eof(now=100.0, timeout=2.0)

    life.drain()

    assert not life.is_overdue(101.9)
    assert life.is_overdue(102.0)


def test_drain_with_deadline():
    """A process that must go has until the deadline to drain."""
    life = life_in(State.UP)

    life.drain(deadline=400.0)

    assert repr(life) == "<Lifecycle pid=412 draining>"
    assert not life.is_overdue(399.9)
    assert life.is_overdue(400.0)


def test_drain_with_deadline_after_end_of_pipe():
    """A deadline to drain gives no more time to a process whose pipe has ended."""
    life = life_in(State.UP)
    life.on_eof(now=100.0, timeout=2.0)

    life.drain(deadline=400.0)

    assert life.is_overdue(102.0)


def test_end_of_pipe_while_draining_with_deadline():
    """A process that drains keeps its deadline when its pipe ends."""
    life = life_in(State.UP)
    life.drain(deadline=400.0)

    life.on_eof(now=100.0, timeout=2.0)

    assert not life.is_overdue(399.9)
    assert life.is_overdue(400.0)


@pytest.mark.parametrize(
    ("before", "exitcode", "expected"),
    [
        (State.STOPPING, 0, True),
        (State.STOPPING, 1, True),
        (State.STOPPING, -9, True),
        (State.DRAINING, 0, True),
        (State.DRAINING, 1, False),
        (State.DRAINING, -15, False),
        (State.UP, 0, False),
        (State.UP, 1, False),
        (State.UP, -11, False),
        (State.STARTING, 0, False),
        (State.STARTING, 0x9D, False),
    ],
)
def test_exit_that_was_asked_for(before, exitcode, expected):
    """An exit is expected of a process that was stopped, or that drained and ended well."""
    assert explain_exit(before, exitcode).expected is expected


@pytest.mark.parametrize("before", [state for state in State if state is not State.EXITED])
@pytest.mark.parametrize("exitcode", [0, 1, 0x9D, -9])
def test_exit_at_start(before, exitcode):
    """Whoever never came up failed at its start, whatever its exit code."""
    assert explain_exit(before, exitcode).at_start is (before is State.STARTING)


@pytest.mark.parametrize(
    ("before", "exitcode", "perhaps"),
    [
        (State.UP, -9, True),
        (State.STARTING, -9, True),
        (State.DRAINING, -9, True),
        (State.STOPPING, -9, False),
        (State.UP, -15, False),
        (State.UP, 9, False),
    ],
)
def test_exit_by_sigkill(before, exitcode, perhaps):
    """A SIGKILL that nobody asked for may be the kernel's, out of memory."""
    assert explain_exit(before, exitcode).perhaps_oom is perhaps


def test_lifecycle_explains_its_exit_by_the_state_before():
    """The exit is judged by the state that it ended, not by EXITED."""
    life = life_in(State.STARTING)

    exit = life.on_exit(-9)

    assert exit == Exit(expected=False, at_start=True, perhaps_oom=True)
    assert repr(life) == "<Lifecycle pid=412 exited>"
