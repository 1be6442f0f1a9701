"""celery_asyncpool/core/job.py: one life, exactly one end."""

from __future__ import annotations

import gc
import weakref

import pytest

from celery_asyncpool.core.job import EDGES, Callbacks, Event, Job, State
from celery_asyncpool.core.timelimits import Limits

#: Each event as the call that makes it happen; a late one would come from elsewhere.
CALLS = {
    Event.ASSIGN: lambda job: job.assign(413),
    Event.GIVE_BACK: lambda job: job.give_back(),
    Event.ACCEPT: lambda job: job.accept(),
    Event.FINISH: lambda job: job.finish(),
    Event.LOSE: lambda job: job.lose(),
    Event.DISCARD: lambda job: job.discard(),
    Event.TERMINATE: lambda job: job.set_terminated(),
    Event.TIME_OUT: lambda job: job.time_out(),
}

#: How a job comes into each state.
PATHS = {
    State.QUEUED: [],
    State.SENT: [Event.ASSIGN],
    State.ACCEPTED: [Event.ASSIGN, Event.ACCEPT],
    State.READY: [Event.ASSIGN, Event.ACCEPT, Event.FINISH],
    State.LOST: [Event.ASSIGN, Event.ACCEPT, Event.LOSE],
    State.DISCARDED: [Event.DISCARD],
    State.TERMINATED: [Event.ASSIGN, Event.ACCEPT, Event.TERMINATE],
    State.TIMED_OUT: [Event.ASSIGN, Event.ACCEPT, Event.TIME_OUT],
}

TERMINAL = {State.READY, State.LOST, State.DISCARDED, State.TERMINATED, State.TIMED_OUT}

PAIRS = [(state, event) for state in State for event in Event]


def job_in(state: State) -> Job:
    job = Job(7, b"payload")
    for event in PATHS[state]:
        if event is Event.ASSIGN:
            job.assign(412)
        else:
            CALLS[event](job)
    assert job.state is state
    return job


def everything(job: Job) -> tuple[object, ...]:
    fixed = job.id, job.payload, job.callbacks, job.limits
    return job.state, job.pid, job.turn, job.terminating, *fixed


def test_edges_name_every_state_and_lead_to_known_states():
    """The table is complete: each state has its row, each edge a state at its end."""
    assert set(EDGES) == set(State)
    assert {new for row in EDGES.values() for new in row.values()} <= set(State)


def test_edges_of_ended_states():
    """The ends are the states that nothing leads out of."""
    assert {state for state, row in EDGES.items() if not row} == TERMINAL


def test_every_state_can_be_reached_and_left_for_an_end():
    """From each state some way leads to an end."""
    can_end = set(TERMINAL)
    for _ in State:
        can_end |= {state for state, row in EDGES.items() if can_end & set(row.values())}

    assert can_end == set(State)


@pytest.mark.parametrize(
    ("state", "event"), [(state, event) for state, event in PAIRS if event in EDGES[state]]
)
def test_job_with_legal_event(state, event):
    """A legal event moves the job along its edge and tells so."""
    job = job_in(state)

    answer = CALLS[event](job)

    assert job.state is EDGES[state][event]
    assert answer is (None if event is Event.ASSIGN else True)


@pytest.mark.parametrize(
    ("state", "event"),
    [(state, event) for state, event in PAIRS if EDGES[state] and event not in EDGES[state]],
)
def test_job_with_illegal_event(state, event):
    """An event that cannot be is our bug: it raises, names both, and changes nothing."""
    job = job_in(state)
    before = everything(job)

    with pytest.raises(AssertionError) as raised:
        CALLS[event](job)

    assert everything(job) == before
    assert str(raised.value) == f"{job!r} cannot {event.value}"


@pytest.mark.parametrize(
    ("state", "event"), [(state, event) for state, event in PAIRS if state in TERMINAL]
)
def test_job_that_has_ended(state, event):
    """A job that has ended stays exactly as it ended, whatever comes later."""
    job = job_in(state)
    before = everything(job)

    answer = CALLS[event](job)

    assert everything(job) == before
    assert not answer


@pytest.mark.parametrize("state", list(State))
def test_job_questions(state):
    """A job knows whether it waits and whether it has ended."""
    job = job_in(state)

    assert job.is_queued is (state is State.QUEUED)
    assert job.has_ended is (state in TERMINAL)


def test_job_through_its_life():
    """The repr follows a job from the queue to its result."""
    job = Job(7, b"")
    seen = [repr(job)]

    job.assign(412)
    seen.append(repr(job))
    job.accept()
    seen.append(repr(job))
    job.finish()
    seen.append(repr(job))

    assert seen == [
        "<Job 7 queued>",
        "<Job 7 sent pid=412>",
        "<Job 7 accepted pid=412>",
        "<Job 7 ready pid=412>",
    ]


def test_job_given_back():
    """A job that its process never accepted is in no process any more and can be sent again."""
    job = job_in(State.SENT)

    job.give_back()
    in_between = repr(job)
    job.assign(413)

    assert in_between == "<Job 7 queued>"
    assert repr(job) == "<Job 7 sent pid=413>"
    assert job.payload == b"payload"


def test_job_accepted_twice():
    """A job that was accepted is not accepted again: the caller is told once."""
    job = job_in(State.SENT)

    first = job.accept()

    assert first is True
    with pytest.raises(AssertionError, match="<Job 7 accepted pid=412> cannot accept"):
        job.accept()


def test_job_discarded_after_send():
    """A job that was sent and not accepted can be discarded, and a late ACK is ignored."""
    job = job_in(State.SENT)

    discarded = job.discard()
    accepted = job.accept()

    assert (discarded, accepted) == (True, False)
    assert job.state is State.DISCARDED


def test_job_lost_before_its_acceptance_is_known():
    """A job whose process has garbled its stream may have run: it is lost, not sent again."""
    job = job_in(State.SENT)

    lost = job.lose()
    given_back = job.give_back()

    assert (lost, given_back) == (True, False)
    assert job.state is State.LOST


@pytest.mark.parametrize("state", [State.QUEUED, State.SENT, State.ACCEPTED])
def test_job_asked_to_terminate(state):
    """Celery's way to end a job asks the pool, and decides nothing by itself."""
    asked = []
    callbacks = Callbacks(terminate=lambda job, signum: asked.append((job, signum)))
    job = Job(7, b"payload", callbacks=callbacks)
    for event in PATHS[state]:
        CALLS[event](job)

    job.terminate(15)

    assert asked == [(job, 15)]
    assert job.state is state


@pytest.mark.parametrize("state", [state for state in State if state in TERMINAL])
def test_job_asked_to_terminate_after_its_end(state):
    """The pool is not asked to end what has ended."""
    job = job_in(state)
    asked = []
    job.callbacks = Callbacks(terminate=lambda job, signum: asked.append((job, signum)))

    job.terminate(15)

    assert asked == []
    assert job.state is state


def test_job_terminated_while_its_result_is_on_its_way():
    """Whichever end is known first is the one end."""
    job = job_in(State.ACCEPTED)

    finished = job.finish()
    terminated = job.set_terminated()

    assert (finished, terminated) == (True, False)
    assert repr(job) == "<Job 7 ready pid=412>"


def test_job_that_timed_out_in_a_log():
    """States are words, also where they are two."""
    assert repr(job_in(State.TIMED_OUT)) == "<Job 7 timed out pid=412>"


def test_job_is_weakly_referenceable():
    """Celery keeps only a weak reference to it, which dies with the pool's own."""
    job = Job(7, b"")
    reference = weakref.ref(job)
    alive = reference() is job

    del job
    gc.collect()

    assert alive
    assert reference() is None


def test_job_in_a_log_line():
    """A job names itself by its task's name and id."""
    job = Job(7, b"", name="proj.fetch", uuid="1f3c")

    assert str(job) == "proj.fetch[1f3c]"


def test_job_without_callbacks():
    """A job of which nobody wants to know has no callback at all."""
    job = Job(7, b"")

    assert job.callbacks == Callbacks(None, None, None, None, (), None)
    assert job.limits == Limits(None, None)
    assert str(job) == "?[?]"
    job.terminate(15)
    assert job.is_queued
