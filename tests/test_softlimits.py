"""celery_asyncpool/softlimits.py: which hook a task has, and which cannot be."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from celery import Celery, Task

from celery_asyncpool import AsyncTask
from celery_asyncpool.softlimits import check_hook, hook_of


@pytest.fixture
def app() -> Celery:
    return Celery("test", broker="memory://", set_as_current=False)


async def body() -> None:
    """A body."""


def hook(task: Any) -> Any:
    """A hook: gives what it was called with."""
    return task


async def async_hook(task: Any) -> Any:
    """An async one."""


def two(first: Any, task: Any) -> Any:
    return first, task


def add(app, base=Task, name="proj.task", **options):
    app.task(body, name=name, base=base, shared=False, **options)
    return app.tasks[name]


class Callable:
    def __call__(self, task: Any) -> Any:
        return task


class WithMethod(Task):
    abstract = True

    def on_soft_limit(self):
        return self


class WithStatic(Task):
    abstract = True

    @staticmethod
    def on_soft_limit(task):
        return task


class WithClassMethod(Task):
    abstract = True

    @classmethod
    def on_soft_limit(cls, task):
        return task


class WithNone(WithMethod):
    abstract = True
    on_soft_limit = None


@pytest.mark.parametrize("option", [hook, Callable(), Callable().__call__])
def test_option(app, option):
    """Whatever can be called is called with the task."""
    task = add(app, on_soft_limit=option, soft_time_limit=5)

    assert hook_of(task)(task) is task


def test_partial(app):
    """A partial is not bound to the task, in any version of Python."""
    task = add(app, on_soft_limit=functools.partial(two, 1), soft_time_limit=5)

    assert hook_of(task)(task) == (1, task)


@pytest.mark.parametrize("base", [WithMethod, WithStatic, WithClassMethod])
def test_method(app, base):
    """A method of the task's class is the same as the option."""
    task = add(app, base, soft_time_limit=5)

    assert hook_of(task)(task) is task


@pytest.mark.parametrize("base", [Task, AsyncTask, WithNone])
def test_no_hook(app, base):
    """Without the option, or with None, there is no hook."""
    task = add(app, base)

    assert hook_of(task) is None
    check_hook(task, None)


@pytest.mark.parametrize(
    ("options", "default"),
    [({"soft_time_limit": 5}, None), ({}, 5), ({"soft_time_limit": 0}, 5)],
)
def test_hook_with_a_limit(app, options, default):
    """The task's own limit will do, and one for all tasks."""
    check_hook(add(app, AsyncTask, on_soft_limit=async_hook, **options), default)
    check_hook(add(app, name="proj.plain", on_soft_limit=async_hook, **options), default)


@pytest.mark.parametrize("base", [Task, AsyncTask])
@pytest.mark.parametrize("options", [{}, {"soft_time_limit": 0}, {"soft_time_limit": None}])
def test_hook_without_a_limit(app, base, options):
    """The error says what is missing, and where it may come from."""
    task = add(app, base, on_soft_limit=hook, **options)

    with pytest.raises(ValueError, match="no soft limit") as raised:
        check_hook(task, None)

    assert str(raised.value) == (
        "task proj.task has on_soft_limit and no soft limit that would call it: give it a "
        "soft_time_limit, or set task_soft_time_limit for all tasks"
    )


def test_hook_without_a_limit_of_a_class(app):
    """A task that is a class is a task like any other."""

    class Report(AsyncTask):
        name = "proj.report"

        def on_soft_limit(self):
            """Nothing would call this."""

    task = app.register_task(Report())

    with pytest.raises(ValueError, match=r"task proj\.report has on_soft_limit"):
        check_hook(task, None)


def test_hook_of_a_base_class_without_a_limit(app):
    """One for many tasks is for those that have a limit, perhaps one of a single call."""
    task = add(app, WithMethod)

    check_hook(task, None)


@pytest.mark.parametrize(
    "option", ["told", 5, lambda: None, two, functools.partial(two, 1, 2), object()]
)
@pytest.mark.parametrize("base", [Task, AsyncTask])
def test_hook_that_cannot_be_called(app, base, option):
    """The error names the task and the hook."""
    with pytest.raises(ValueError, match="must be a function") as raised:
        check_hook(add(app, base, on_soft_limit=option, soft_time_limit=5), None)

    assert str(raised.value) == (
        f"on_soft_limit of task proj.task must be a function that takes the task, got {option!r}"
    )


def test_builtin(app):
    """A function that does not tell what it takes is taken as it is."""
    check_hook(add(app, on_soft_limit=print, soft_time_limit=5), None)
    check_hook(add(app, name="proj.other", on_soft_limit=min, soft_time_limit=5), None)


def test_annotation(app):
    """Celery's task_annotations give hooks, too."""
    app.conf.task_annotations = {"proj.task": {"on_soft_limit": hook, "soft_time_limit": 5}}
    task = add(app, AsyncTask)

    assert hook_of(task)(task) is task
