"""celery_asyncpool/tasklimits.py: whose limit counts, and which are told of at the start."""

from __future__ import annotations

import logging
import math

import pytest
from celery import Celery, Task

from celery_asyncpool.core.timelimits import Limits
from celery_asyncpool.tasklimits import (
    Refusals,
    call_time_limits,
    job_limits,
    tell_of_threads,
)


@pytest.fixture
def app() -> Celery:
    return Celery("test", broker="memory://", set_as_current=False)


async def waits() -> None:
    """An async body."""


def computes() -> None:
    """A plain one."""


def add(app, name, body=waits, **options):
    app.task(body, name=name, shared=False, **options)


@pytest.mark.parametrize(
    ("own", "default", "limits"),
    [
        ((None, None), Limits(), Limits()),
        ((None, None), Limits(5, 10), Limits(5, 10)),
        ((1, 2), Limits(5, 10), Limits(1, 2)),
        ((1, None), Limits(5, 10), Limits(1, 10)),
        ((None, 7), Limits(5, 10), Limits(5, 7)),
        ((0, 0), Limits(5, 10), Limits(5, 10)),
        ((1, 2), Limits(), Limits(1, 2)),
    ],
)
def test_limits_of_a_job(own, default, limits):
    """The job's own limits come before the worker's, each for itself."""
    assert job_limits(*own, default) == limits


@pytest.mark.parametrize(
    ("own", "default", "limits"),
    [
        ((10, None), Limits(hard=5), Limits(None, 5)),
        ((5, None), Limits(hard=5), Limits(None, 5)),
        ((None, 5), Limits(soft=10), Limits(None, 5)),
        ((None, 5), Limits(10, 20), Limits(None, 5)),
    ],
)
def test_limits_of_a_job_that_are_at_odds_with_the_workers(own, default, limits):
    """A soft limit behind the hard one of somebody else is no error: it never comes."""
    assert job_limits(*own, default) == limits


def test_default_is_left_alone():
    """What one job leaves out of the worker's limits stays in them."""
    default = Limits(10, 20)

    job_limits(None, 5, default)

    assert default == Limits(10, 20)


@pytest.mark.parametrize(
    ("own", "limits"),
    [
        ((-1, "soon"), Limits(100, 200)),
        ((math.nan, math.inf), Limits(100, 200)),
        (("5", "7.5"), Limits(5, 7.5)),
        ((True, [3]), Limits(100, 200)),
    ],
)
def test_limits_of_a_job_that_are_nonsense(own, limits):
    """What cannot be a limit is none, and a number's text is the number."""
    assert job_limits(*own, Limits(100, 200)) == limits


@pytest.mark.parametrize("value", [None, (None, None), [0, None], [False, 0.0]])
def test_limits_of_a_message_without_any(value, caplog):
    """There is nothing to tell of."""
    assert call_time_limits(value, "proj.task[1f3c]") == (None, None)
    assert caplog.records == []


def test_limits_of_a_message(caplog):
    """They are hard and soft, in this order."""
    assert call_time_limits([30, "20"], "proj.task[1f3c]") == (30, 20)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("value", "limits", "text"),
    [
        ([-1, 5], (None, 5), "runs without the time_limit -1 of its message"),
        ([5, "x"], (5, None), "runs without the soft_time_limit 'x' of its message"),
        (
            [math.nan, True],
            (None, None),
            "runs without the time_limit nan and the soft_time_limit True of its message",
        ),
        ("ab", (None, None), "runs without the limits of its message, whose timelimit must be"),
        ({1: 2, 3: 4}, (None, None), "runs without the limits of its message"),
    ],
)
def test_limits_of_a_message_that_are_nonsense(value, limits, text, caplog):
    """They are left out, and one line names them and the call."""
    assert call_time_limits(value, "proj.task[1f3c]") == limits

    (record,) = caplog.records
    assert record.getMessage().startswith(f"proj.task[1f3c] {text}")


def test_tasks_with_good_limits(app, caplog):
    """Limits of async tasks are nothing to speak of."""
    caplog.set_level(logging.INFO)
    add(app, "proj.waits", soft_time_limit=5, time_limit=10)
    add(app, "proj.computes", computes)

    Refusals(app, Limits())
    tell_of_threads(app, Limits())

    assert caplog.records == []


@pytest.mark.parametrize("body", [waits, computes])
def test_task_with_bad_limits(app, body, caplog):
    """It is named in an error, and its calls are refused; others are not."""
    add(app, "proj.good", time_limit=5)
    add(app, "proj.bad", body, time_limit=-5)

    refusals = Refusals(app, Limits())

    why = "time_limit of task proj.bad must be a number of seconds above 0, got -5"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == f"calls of task proj.bad fail, all other tasks run: {why}"
    refusals.check("proj.good", None, None)
    refusals.check("proj.unknown", None, None)
    with pytest.raises(ValueError, match="must be") as raised:
        refusals.check("proj.bad", None, None)
    assert str(raised.value) == why


def test_call_with_what_its_task_lacks(app):
    """A call runs with limits of its own, and when the task was given others."""
    add(app, "proj.bad", soft_time_limit=60, time_limit=30)
    refusals = Refusals(app, Limits())

    refusals.check("proj.bad", 90, None)
    refusals.check("proj.bad", None, 20)
    with pytest.raises(ValueError, match="must be less"):
        refusals.check("proj.bad", None, None)
    app.tasks["proj.bad"].time_limit = 90
    refusals.check("proj.bad", None, None)


def test_task_whose_limits_are_the_same(app, caplog):
    """Celery lets it be called, so it runs, and a warning says which limit holds."""
    add(app, "proj.same", soft_time_limit=30, time_limit="30.0")

    Refusals(app, Limits()).check("proj.same", None, None)

    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "soft_time_limit of task proj.same is left out" in record.getMessage()


def test_def_tasks_with_limits(app, caplog):
    """Tasks whose limits are raised in threads are listed in one line."""
    caplog.set_level(logging.INFO)
    add(app, "proj.hard", computes, time_limit=5)
    add(app, "proj.soft", computes, soft_time_limit=5)
    add(app, "proj.none", computes)
    add(app, "proj.waits", waits, time_limit=5)

    tell_of_threads(app, Limits())

    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage().endswith("tasks with such limits: proj.hard, proj.soft")


def test_def_tasks_with_the_workers_limits(app, caplog):
    """A limit of all tasks is one of each plain function, but for Celery's own tasks."""
    caplog.set_level(logging.INFO)
    add(app, "proj.computes", computes)
    add(app, "proj.waits", waits)

    tell_of_threads(app, Limits(hard=60))

    (record,) = caplog.records
    assert record.getMessage().endswith("tasks with such limits: proj.computes")


def test_class_with_an_async_call(app, caplog):
    """A task whose `__call__` is async has no thread, whatever its `run` is."""
    caplog.set_level(logging.INFO)

    class Base(Task):
        async def __call__(self):
            return self.run()

    add(app, "proj.called", computes, base=Base, time_limit=5)

    tell_of_threads(app, Limits())

    assert caplog.records == []


def test_autoretry_hides_no_async_body(app, caplog):
    """A task is what its own function is, not what Celery has put around it."""
    caplog.set_level(logging.INFO)
    add(app, "proj.retried", waits, autoretry_for=(OSError,), time_limit=5)

    tell_of_threads(app, Limits())

    assert caplog.records == []
