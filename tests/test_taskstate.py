"""celery_asyncpool/taskstate.py: a later process begins with the tasks of the first one."""

import celery
import pytest
from celery import Celery

from celery_asyncpool import taskstate


class Own(celery.Task):
    """Has a `__call__`."""

    def __call__(self, *args, **kwargs):
        return self.run(*args, **kwargs)


def one():
    return 1


@pytest.fixture
def app():
    with Celery("state", set_as_current=False) as app:
        yield app


@pytest.mark.parametrize("base", [celery.Task, Own])
def test_what_tools_have_done_is_undone(app, base):
    """Wrappers around `run` and `__call__`, and a tool's own marks, are gone."""
    app.task(one, name="one", base=base, shared=False)
    task = app.tasks["one"]  # itself, not a proxy
    before, call = task.run, type(task).__call__
    taskstate.remember(app)

    task.run = lambda: 2
    task._tool_was_here = True
    type(task).__call__ = lambda self: 3
    taskstate.put_back(app)

    assert task.run is before
    assert not hasattr(task, "_tool_was_here")
    assert type(task).__call__ is call


def test_a_task_that_came_later(app):
    """It stays as it is."""
    taskstate.remember(app)
    task = app.task(one, name="one", shared=False)
    task.note = "kept"

    taskstate.put_back(app)

    assert task.note == "kept"
