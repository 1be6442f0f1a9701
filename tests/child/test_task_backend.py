"""celery_asyncpool/child/tasks.py: a task with a result backend of its own."""

from __future__ import annotations

import pytest
from celery import Celery, Task
from celery.backends.filesystem import FilesystemBackend

from celery_asyncpool.child import tasks
from celery_asyncpool.child.offload import OffloadedBackend


@pytest.fixture
def app(tmp_path):
    return Celery("test", broker="memory://", backend=f"file://{tmp_path}", set_as_current=False)


@pytest.fixture
def own(app, tmp_path):
    return FilesystemBackend(app=app, url=f"file://{tmp_path}")


def body():
    """Nothing."""


def add(app, **options):
    app.task(body, name="proj.task", shared=False, **options)
    return app.tasks["proj.task"]


def check(task, own):
    tasks.prepare(task)
    assert isinstance(task.backend, OffloadedBackend)
    assert task.backend.unwrapped is own


def test_of_option(app, own):
    """`@app.task(backend=...)`: the loop does not wait for it either."""
    check(add(app, backend=own), own)


def test_of_class(app, own):
    """As an attribute of the task's class."""

    class Base(Task):
        abstract = True
        backend = own

    check(add(app, base=Base), own)


def test_of_instance(app, own):
    """Set on the task."""
    task = add(app)
    task.backend = own

    check(task, own)


def test_none(app):
    """A task without its own uses the app's, whatever that is in each thread."""
    task = add(app)

    tasks.prepare(task)

    assert task._backend is None
    assert task.backend is app.backend
