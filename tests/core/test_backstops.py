"""celery_asyncpool/core/backstops.py: when a process must have said something of a job's end."""

from __future__ import annotations

from celery_asyncpool.core.backstops import Backstops


def test_due_in_order_and_once():
    """Jobs are due when their time is over, the earliest first, and once."""
    backstops = Backstops()
    for job_id, when in ((1, 30.0), (2, 10.0), (3, 20.0)):
        backstops.set(job_id, when)

    assert list(backstops.due(9.9)) == []
    assert list(backstops.due(20.0)) == [2, 3]
    assert list(backstops.due(20.0)) == []
    assert len(backstops) == 1


def test_time_that_is_set_anew():
    """The latest time of a job counts, be it later or earlier."""
    backstops = Backstops()
    backstops.set(1, 10.0)
    backstops.set(1, 20.0)
    backstops.set(2, 40.0)
    backstops.set(2, 20.0)

    assert list(backstops.due(19.0)) == []
    assert list(backstops.due(50.0)) == [1, 2]


def test_cleared_time():
    """A job that has ended is never due."""
    backstops = Backstops()
    backstops.set(1, 10.0)

    backstops.clear(1)
    backstops.clear(2)

    assert list(backstops.due(50.0)) == []
    assert len(backstops) == 0


def test_time_that_is_set_while_others_are_due():
    """A job whose time is put off while the due ones are looked at is due later."""
    backstops = Backstops()
    backstops.set(1, 10.0)
    backstops.set(2, 11.0)
    seen = []

    for job_id in backstops.due(20.0):
        seen.append(job_id)
        backstops.set(2, 30.0)

    assert seen == [1]
    assert list(backstops.due(30.0)) == [2]


def test_jobs_that_end_long_before_their_time():
    """A thousand jobs with a limit of an hour that have ended leave next to nothing."""
    backstops = Backstops()
    backstops.set(0, 1800.0)
    for job_id in range(1, 1001):
        backstops.set(job_id, 3600.0 + job_id)
        backstops.clear(job_id)

    assert len(backstops) == 1
    assert len(backstops._heap) < 100
    assert list(backstops.due(5000.0)) == [0]
