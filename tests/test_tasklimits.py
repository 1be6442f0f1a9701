"""celery_asyncpool/tasklimits.py: whose limit counts, and which are told of at the start."""

from __future__ import annotations

import logging

import pytest
from celery import Celery, Task

from celery_asyncpool.core.timelimits import Limits
from celery_asyncpool.settings import BadSetting
from celery_asyncpool.tasklimits import check_tasks, job_limits


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
    assert job_limits(*own, default, "task x") == limits


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
    assert job_limits(*own, default, "task x") == limits


def test_default_is_left_alone():
    """What one job leaves out of the worker's limits stays in them."""
    default = Limits(10, 20)

    job_limits(None, 5, default, "task x")

    assert default == Limits(10, 20)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ((-1, None), "soft_time_limit of task x must be a number of seconds above 0, got -1"),
        ((None, "5"), "time_limit of task x must be a number of seconds above 0, got '5'"),
        ((5, 5), "soft_time_limit of task x must be less than its time_limit, got 5 and 5"),
    ],
)
def test_limits_of_a_job_that_are_nonsense(own, message):
    """The error says whose limits they are."""
    with pytest.raises(ValueError, match="must be") as raised:
        job_limits(*own, Limits(100, 200), "task x")

    assert str(raised.value) == message


def test_tasks_with_good_limits(app, caplog):
    """Limits of async tasks are nothing to speak of."""
    caplog.set_level(logging.INFO)
    add(app, "proj.waits", soft_time_limit=5, time_limit=10)
    add(app, "proj.computes", computes)

    check_tasks(app, Limits())

    assert caplog.records == []


@pytest.mark.parametrize("body", [waits, computes])
def test_task_with_bad_limits(app, body):
    """The error names the task."""
    add(app, "proj.good", time_limit=5)
    add(app, "proj.bad", body, time_limit=-5)

    with pytest.raises(BadSetting) as raised:
        check_tasks(app, Limits())

    assert str(raised.value) == (
        "celery_asyncpool: time_limit of task proj.bad must be a number of seconds above 0, got -5"
    )
    assert raised.value.__cause__ is None


def test_def_tasks_with_limits(app, caplog):
    """Tasks whose limits are raised in threads are listed in one line."""
    caplog.set_level(logging.INFO)
    add(app, "proj.hard", computes, time_limit=5)
    add(app, "proj.soft", computes, soft_time_limit=5)
    add(app, "proj.none", computes)
    add(app, "proj.waits", waits, time_limit=5)

    check_tasks(app, Limits())

    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage().endswith("tasks with such limits: proj.hard, proj.soft")


def test_def_tasks_with_the_workers_limits(app, caplog):
    """A limit of all tasks is one of each plain function, but for Celery's own tasks."""
    caplog.set_level(logging.INFO)
    add(app, "proj.computes", computes)
    add(app, "proj.waits", waits)

    check_tasks(app, Limits(hard=60))

    (record,) = caplog.records
    assert record.getMessage().endswith("tasks with such limits: proj.computes")


def test_class_with_an_async_call(app, caplog):
    """A task whose `__call__` is async has no thread, whatever its `run` is."""
    caplog.set_level(logging.INFO)

    class Base(Task):
        async def __call__(self):
            return self.run()

    add(app, "proj.called", computes, base=Base, time_limit=5)

    check_tasks(app, Limits())

    assert caplog.records == []


def test_autoretry_hides_no_async_body(app, caplog):
    """A task is what its own function is, not what Celery has put around it."""
    caplog.set_level(logging.INFO)
    add(app, "proj.retried", waits, autoretry_for=(OSError,), time_limit=5)

    check_tasks(app, Limits())

    assert caplog.records == []
