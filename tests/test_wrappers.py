"""A task's parameters may have any names: no wrapper of the package claims one."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect

import celery
import pytest
from celery import Celery

from celery_asyncpool import AsyncTask, eager
from celery_asyncpool.child.jobcontext import JobContext, job_entered
from celery_asyncpool.child.offload import offload
from celery_asyncpool.child.retries import RetryAfterBody, deferred
from celery_asyncpool.child.tasks import OutermostCall, RunCall, SettledCall, call_for_tracer
from celery_asyncpool.child.threads import BodyThreads
from celery_asyncpool.child.trace import call_in_thread, drive
from celery_asyncpool.client.publish import call_in_thread as call_in_clients_thread
from celery_asyncpool.testing import start_worker

from .wrappers import all_names, functions

#: Overrides, which are called with the names that their base class has given.
OVERRIDES = {
    "files.channel:_delete",
    "redis_transport.channel:basic_consume",
    "request:cancel",
    "testworker:_store_result",
    "testworker:get_many",
    "testworker:wait_for",
}

EVERYTHING = {name: number for number, name in enumerate(all_names())}


def test_no_name_is_claimed():
    """What passes arguments on takes its own by position only."""
    claims = {
        function.where: sorted(function.claimed)
        for function in functions()
        if function.is_wrapper and function.claimed and function.where not in OVERRIDES
    }

    assert claims == {}


def give(*args, **kwargs):
    return kwargs


async def agive(*args, **kwargs):
    return kwargs


class Called(celery.Task):
    """Overrides `__call__`."""

    def __call__(self, /, *args, **kwargs):
        return self.run(*args, **kwargs)


@pytest.fixture
def app():
    with Celery("wrappers", set_as_current=False) as app:
        yield app


async def in_threads(function, /, **kwargs):
    threads = BodyThreads(1)
    with contextlib.ExitStack() as stack:
        stack.callback(threads.shutdown)
        return await threads.run(function, **kwargs)


async def driven(function, /, **kwargs):
    return await drive(function, **kwargs)


def _of(function):
    """*function* as a method of a class."""

    def method(self, /, **kwargs):
        return function(**kwargs)

    return method


#: All that take the arguments of a task's body, or of a call, in a pool process.
WRAPPERS = {
    "SettledCall": lambda task: SettledCall(give),
    "RunCall": lambda task: RunCall(give, task),
    "OutermostCall": lambda task: OutermostCall(give, task),
    "RetryAfterBody": lambda task: RetryAfterBody(give, task),
    "deferred": lambda task: functools.partial(deferred(_of(give)), task),
    "call_for_tracer": lambda task: functools.partial(call_for_tracer, task, give),
    "call_in_thread": lambda task: functools.partial(call_in_thread, give),
    "offload": lambda task: functools.partial(offload, give),
    "drive": lambda task: functools.partial(driven, give),
    "threads": lambda task: functools.partial(in_threads, give),
    "client's thread": lambda task: functools.partial(call_in_clients_thread, give),
    "eager.call": lambda task: functools.partial(eager.call, give),
}


@pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers(app, make):
    """Each wrapper passes every name on."""
    call = make(app.task(give, name="give", shared=False))

    with job_entered(JobContext(1)):
        value = call(**EVERYTHING)
        assert (asyncio.run(value) if inspect.isawaitable(value) else value) == EVERYTHING


@pytest.mark.parametrize("base", [celery.Task, AsyncTask, Called])
@pytest.mark.parametrize("body", [give, agive])
@pytest.mark.parametrize("options", [{}, {"autoretry_for": (KeyError,)}])
def test_eager(app, base, body, options):
    """Eager calls pass every name on, also through `await eager.call(...)`."""
    task = app.task(body, name="give", base=base, shared=False, **options)
    eager.install()
    try:
        assert task.apply(kwargs=EVERYTHING).get() == EVERYTHING
        result = asyncio.run(eager.call(task.apply, kwargs=EVERYTHING))
    finally:
        eager.uninstall()
    assert result.get() == EVERYTHING


@pytest.mark.parametrize("body", [give, agive])
def test_testworker(app, body):
    """So does the worker for tests."""
    task = app.task(body, name="give", base=AsyncTask, shared=False)
    with start_worker(app):
        assert task.apply_async(kwargs=EVERYTHING).get(timeout=60) == EVERYTHING
