"""celery_asyncpool/tasktypes.py and loopcode.py: what a function is, before it is called."""

import asyncio
import functools
import inspect

import celery
import pytest
from asgiref.sync import async_to_sync, markcoroutinefunction
from celery import Celery

from celery_asyncpool import AsyncTask
from celery_asyncpool.loopcode import runs_a_loop
from celery_asyncpool.tasktypes import (
    has_async_body,
    has_hidden_body,
    is_async,
    mark_task,
)


async def body(*args, **kwargs):
    await asyncio.sleep(0)
    return args


def passes(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def awaits(function):
    @functools.wraps(function)
    async def wrapper(*args, **kwargs):
        return await function(*args, **kwargs)

    return wrapper


class Callable:
    """An object that is async."""

    async def __call__(self):
        return 1

    async def method(self):
        return 1


class Claims(Callable):
    """Says that it is a function, as proxies do."""

    def __init__(self, function):
        self.function = function

    __class__ = property(lambda self: type(self.function))

    @property
    def __code__(self):
        return self.function.__code__

    def __call__(self):
        return asyncio.run(self.function())


def def_body():
    return 1


def test_known():
    """Async functions of all kinds, and what has been marked as one."""
    for function in (
        body,
        functools.partial(body, 1),
        Callable(),
        Callable().method,
        awaits(body),
        awaits(passes(body)),
        markcoroutinefunction(passes(body)),
    ):
        assert is_async(function), function


def test_not_known():
    """A plain function tells nothing, whatever it wraps, or claims."""
    marked = markcoroutinefunction(passes(body))
    for function in (
        def_body,
        passes(body),
        passes(awaits(body)),
        passes(marked),  # `functools.wraps` copies the mark
        functools.partial(passes(body)),
        async_to_sync(body),
        functools.singledispatch(body),
        Claims(body),
    ):
        assert not is_async(function), function


@pytest.fixture
def app():
    with Celery("types", set_as_current=False) as app:
        yield app


@pytest.mark.parametrize(
    ("function", "on_loop", "hidden"),
    [(body, True, False), (def_body, False, False), (passes(body), False, True)],
)
@pytest.mark.parametrize("options", [{}, {"autoretry_for": (KeyError,)}])
def test_bodies(app, function, on_loop, hidden, options):
    """A task is what its function is, with `autoretry_for`, too."""
    app.task(function, name="one", shared=False, **options)

    assert has_async_body(app.tasks["one"]) is on_loop
    assert has_hidden_body(app.tasks["one"]) is hidden


@pytest.mark.parametrize("base", [celery.Task, AsyncTask])
@pytest.mark.parametrize("function", [body, def_body])
def test_python_knows(app, base, function):
    """`inspect.iscoroutinefunction(task.run)` and asyncio's of the task are what is true."""
    app.task(function, name="one", base=base, shared=False)
    task = app.tasks["one"]
    mark_task(task)

    assert inspect.iscoroutinefunction(task.run) is inspect.iscoroutinefunction(function)
    marked = inspect.iscoroutinefunction(task) or hasattr(task, "_is_coroutine")
    assert bool(marked) is (function is body)


def run_later(coroutine):
    return asyncio.new_event_loop().run_until_complete(coroutine)


class Runs(celery.Task):
    def __call__(self, *args):
        return asyncio.run(self.run(*args))


class RunsByHelper(celery.Task):
    def __call__(self, *args):
        return run_later(self.run(*args))


class RunsByMethod(celery.Task):
    def __call__(self, *args):
        return self.finish(self.run(*args))

    def finish(self, coroutine):
        loop = self.new_loop()
        return loop.run_until_complete(coroutine)


class RunsInside(celery.Task):
    def __call__(self, *args):
        def work():
            from asyncio import Runner

            with Runner() as runner:
                return runner.run(self.run(*args))

        return work()


class Passes(celery.Task):
    def __call__(self, *args):
        with self.app.connection():
            self.notes.append(body)
            return super().__call__(*args)


class Decorated(celery.Task):
    @passes
    def __call__(self, *args):
        return asyncio.run(self.run(*args))


@pytest.mark.parametrize("cls", [Runs, RunsByHelper, RunsByMethod, RunsInside, Decorated])
def test_call_that_runs_a_loop(app, cls):
    """Its task needs a thread: in the function itself, in a helper, or under a decorator."""
    app.task(body, name="one", base=cls, shared=False)

    assert runs_a_loop(cls.__call__, cls)
    assert not has_async_body(app.tasks["one"])
    assert has_hidden_body(app.tasks["one"])


def test_call_that_runs_none(app):
    """Its task is awaited on the loop."""
    app.task(body, name="one", base=Passes, shared=False)

    assert not runs_a_loop(Passes.__call__, Passes)
    assert has_async_body(app.tasks["one"])
