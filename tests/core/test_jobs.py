"""celery_asyncpool/core/jobs.py: what follows from an event, event by event."""

from __future__ import annotations

import pytest

from celery_asyncpool.core.caps import Caps
from celery_asyncpool.core.job import Callbacks, Job, State
from celery_asyncpool.core.jobs import (
    BACKSTOP_MARGIN,
    Ask,
    Cancel,
    JobTable,
    Loss,
    Report,
    Send,
    SlotFree,
    Tell,
    Waiting,
)
from celery_asyncpool.core.timelimits import Limits, Verdict

PID = 7
GRACE = 5.0
GONE = Loss("Worker exited prematurely: signal 9 (SIGKILL)", is_suspect=True)


@pytest.fixture
def table():
    """One process that is up, two slots."""
    table = JobTable(2, 2, max_crashes=3, cancel_grace=GRACE)
    table.process_up(PID)
    return table


def submit(table, job_id, **options):
    job = Job(job_id, b"payload", **options)
    assert table.submit(job) == []
    return job


def run(table, job_id, **options):
    """Submit a job and let the process accept it."""
    job = submit(table, job_id, **options)
    assert table.assign() == [Send(job)]
    assert table.accept(PID, job_id, 1.5) == [Tell(job, Report.ACCEPTED, (PID, 1.5))]
    return job


def test_job_that_ends_well(table):
    """Its result is told, and then its slot is free."""
    job = run(table, 1)

    assert table.ready(PID, 1, b"result") == [Tell(job, Report.RESULT, b"result"), SlotFree()]
    assert (len(table), table.slots_taken, table.held(PID).done) == (0, 0, 1)


def test_job_that_reports_nothing(table):
    """Its slot is free; nobody is told of an outcome."""
    run(table, 1)

    assert table.ready(PID, 1, b"") == [SlotFree()]


def test_messages_of_jobs_that_are_not_there(table):
    """What is said of a job that the process does not have changes nothing."""
    run(table, 1)

    assert table.ready(PID, 2, b"result") == []
    assert table.ready(8, 1, b"result") == []
    assert table.accept(PID, 2, 1.5) == []
    assert table.stuck(PID, 2, Verdict.HARD_LIMIT.value, "", None) == []
    assert len(table) == 1


def test_job_that_was_refused(table):
    """What cannot be a job ends with its error, and gives its slot back."""
    error = ValueError("no")
    job = Job(1, b"")

    assert table.refuse(job, error, PID, 1.5) == [
        Tell(job, Report.ACCEPTED, (PID, 1.5)),
        Tell(job, Report.REFUSED, error),
        SlotFree(),
    ]
    assert len(table) == 0


def test_job_that_comes_too_late(table):
    """While the worker stops, a job is neither run nor told of."""
    job = Job(1, b"")

    assert table.decline(job) == [SlotFree()]
    assert job.state is State.DISCARDED


def test_job_that_had_to_wait(table):
    """Celery is asked before it is sent: it may have been revoked meanwhile."""
    first, second = submit(table, 1), submit(table, 2)
    table.turn += 2

    assert table.assign() == [Ask(first), Ask(second)]
    assert table.answer(first, must_not_run=False) == [Send(first)]
    assert table.answer(second, must_not_run=True) == [SlotFree()]
    assert table.held(PID).jobs == {1: first}
    assert second.state is State.DISCARDED


def test_answer_of_a_job_that_has_gone_elsewhere(table):
    """A process that dies while Celery is asked never has the job; it is sent once."""
    job = submit(table, 1)
    table.turn += 2
    assert table.assign() == [Ask(job)]
    assert table.process_gone(PID, GONE) == []
    table.process_up(8)
    assert table.assign() == [Ask(job)]

    assert table.answer(job, must_not_run=False) == [Send(job)]
    assert table.answer(job, must_not_run=False) == []
    assert job.pid == 8


def test_termination_while_celery_is_asked(table):
    """The process has not heard of the job: it ends here, at once."""
    job = submit(table, 1)
    table.turn += 2
    table.assign()

    assert table.terminate(job, 15, now=10.0) == [Tell(job, Report.TERMINATED), SlotFree()]
    assert table.answer(job, must_not_run=False) == []
    assert table.held(PID).jobs == {}


def test_termination_of_a_running_job(table):
    """Its process is asked, once, and has the grace time to say something."""
    job = run(table, 1)

    assert table.terminate(job, 15, now=10.0) == [Cancel(job)]
    assert table.terminate(job, 15, now=11.0) == []
    assert table.overdue(10.0 + GRACE + BACKSTOP_MARGIN - 0.1) == []
    assert table.overdue(10.0 + GRACE + BACKSTOP_MARGIN) == [job]


def test_termination_of_a_job_that_has_ended(table):
    """It comes too late, and nothing is told twice."""
    job = run(table, 1)
    table.ready(PID, 1, b"result")

    assert table.terminate(job, 15, now=10.0) == []


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (Verdict.TERMINATED, (Report.TERMINATED, None)),
        (Verdict.HARD_LIMIT, (Report.TIMED_OUT, "here")),
    ],
)
def test_body_that_is_stuck(table, verdict, expected):
    """Its outcome is told at once, its slot is free when it has ended."""
    job = run(table, 1, limits=Limits(hard=1.0))

    told = [Tell(job, *expected)]
    if verdict is Verdict.HARD_LIMIT:
        told.insert(0, Tell(job, Report.HARD_LIMIT))
    assert table.stuck(PID, 1, verdict.value, "here", None) == told
    assert table.held(PID).has_only_stuck
    assert table.slots_taken == 1
    assert table.ready(PID, 1, b"") == [SlotFree()]


def test_limits_that_are_over(table):
    """Whoever wants to know hears of each once, whoever has noticed it."""
    job = run(table, 1, limits=Limits(soft=1.0, hard=2.0))

    assert table.limit_over(PID, 1, is_soft=True) == [Tell(job, Report.SOFT_LIMIT)]
    assert table.limit_over(PID, 1, is_soft=False) == [Tell(job, Report.HARD_LIMIT)]
    assert table.limit_over(PID, 1, is_soft=False) == []
    assert table.limit_over(PID, 2, is_soft=True) == []
    told = table.stuck(PID, 1, Verdict.HARD_LIMIT.value, "here", None)
    assert told == [Tell(job, Report.TIMED_OUT, "here")]
    assert table.limit_over(PID, 1, is_soft=True) == []


def test_process_that_is_late(table):
    """It gets the grace time from when it was first missed; then nothing more."""
    job = run(table, 1, limits=Limits(hard=1.0))
    table.started(PID, 1, 10.0)

    assert table.overdue(12.0) == [job]
    assert table.wait_on(job, 12.0)
    assert table.overdue(13.0) == [job]
    assert not table.wait_on(job, 12.0 + GRACE)


def test_process_that_was_only_late(table):
    """It has cancelled the body after all: the time begins anew."""
    job = run(table, 1, limits=Limits(hard=1.0))
    table.started(PID, 1, 10.0)
    table.wait_on(job, 12.0)

    table.cancelled(PID, 1, 12.5)

    assert table.held(PID).overdue == {}
    assert table.overdue(12.5 + GRACE + BACKSTOP_MARGIN) == [job]


def test_process_that_dies(table):
    """What it accepted is lost; what it did not waits for another one, before all others."""
    lost, unaccepted = run(table, 1), submit(table, 2)
    table.assign()

    text = f"{GONE.text} Job: 1. (worker process {PID})"
    assert table.process_gone(PID, GONE) == [Tell(lost, Report.LOST, text), SlotFree()]
    assert unaccepted.is_queued
    table.process_up(8)
    assert table.assign() == [Send(unaccepted)]


def test_process_that_dies_with_a_job_whose_time_was_over(table):
    """It is told as a time limit, with the stack of where the process was."""
    job = run(table, 1, limits=Limits(hard=1.0))
    table.wait_on(job, 12.0)

    loss = GONE._replace(stack="there", is_suspect=False)
    assert table.process_gone(PID, loss) == [
        Tell(job, Report.HARD_LIMIT),
        Tell(job, Report.OVERDUE, "there"),
        SlotFree(),
    ]


def test_process_whose_stream_was_broken(table):
    """Nobody knows what it had accepted: nothing runs again."""
    job = submit(table, 1)
    table.assign()

    [told, free] = table.process_gone(PID, GONE._replace(is_garbled=True))
    assert (told.job, told.report, free) == (job, Report.LOST, SlotFree())


def test_task_that_takes_down_its_process_too_often(table):
    """The third time it is given up, where somebody can do that."""
    callbacks = Callbacks(fail_for_good=lambda info: None)
    for job_id, report in enumerate([Report.LOST, Report.LOST, Report.GIVEN_UP], start=1):
        run(table, job_id, uuid="the same", callbacks=callbacks)
        [told, _] = table.process_gone(PID, GONE)
        assert told.report is report
        table.process_up(PID)
    assert "crash number 3 (asyncpool_max_crashes)" in told.detail


def test_slot_that_was_taken_away(table):
    """After a shrink, a job that ends gives back no slot that is not there any more."""
    run(table, 1)
    run(table, 2)
    table.resize(1, 1)

    assert table.ready(PID, 1, b"") == []
    assert table.ready(PID, 2, b"") == [SlotFree()]


def test_job_that_waits_for_its_cap():
    """It gives its slot back, and goes on with that of the one that it has waited for."""
    table = JobTable(2, 2, Caps([("task", 1)]), max_crashes=3, cancel_grace=GRACE)
    table.process_up(PID)
    first, second = Job(1, b"", name="task"), Job(2, b"", name="task")
    assert table.submit(first) == []

    assert table.submit(second) == [SlotFree(), Waiting(1)]
    assert table.assign() == [Send(first)]
    table.accept(PID, 1, 1.5)
    assert table.ready(PID, 1, b"x") == [Tell(first, Report.RESULT, b"x"), Waiting(0)]
    assert table.assign() == [Send(second)]


def test_broker_that_is_lost(table):
    """What no process has is forgotten; what one has stays."""
    running, waiting = run(table, 1), submit(table, 2)

    assert table.drop_queued() == [SlotFree()]
    assert waiting.state is State.DISCARDED
    assert table.jobs() == [running]


def test_cold_shutdown(table):
    """All are forgotten; nothing is told of what is ended, or is lost with its process."""
    job = run(table, 1, limits=Limits(hard=1.0))
    table.started(PID, 1, 10.0)
    run(table, 2)

    table.abandon()

    assert len(table) == 0
    assert table.overdue(1000.0) == []
    assert table.terminate(job, 15, now=10.0) == []
    assert table.stuck(PID, 1, Verdict.TERMINATED.value, "here", None) == []
    assert table.ready(PID, 1, b"") == []
    assert table.process_gone(PID, GONE) == []


def test_outcome_in_a_cold_shutdown(table):
    """What had its outcome is told of once, so that its message does not come again."""
    job = run(table, 1)
    table.abandon()

    assert table.ready(PID, 1, b"result") == [Tell(job, Report.RESULT, b"result")]
    assert table.ready(PID, 1, b"result") == []


def test_job_that_is_accepted_in_a_cold_shutdown(table):
    """It is not acknowledged for that: it may never begin. It is, when it has an outcome."""
    ended, cut = submit(table, 1), submit(table, 2)
    table.assign()
    table.abandon()

    assert table.accept(PID, 1, 1.5) == table.accept(PID, 2, 1.5) == []

    accepted = Tell(ended, Report.ACCEPTED, (PID, 1.5))
    assert table.ready(PID, 1, b"x") == [accepted, Tell(ended, Report.RESULT, b"x")]
    assert table.ready(PID, cut.id, b"") == []


def test_body_that_has_ended_and_its_handler_has_not(table):
    """Its own outcome is told; and what comes after a body is not timed by us."""
    job = run(table, 1, limits=Limits(hard=1.0))
    table.started(PID, 1, 10.0)
    table.over(PID, 1)
    assert table.overdue(100.0) == []

    told = table.stuck(PID, 1, Verdict.TERMINATED.value, "here", b"result")
    assert told == [Tell(job, Report.RESULT, b"result")]
