"""Async tasks, of whatever kind, for a worker whose pool does not await."""

import asyncio
import functools

from celery import Task

from celery_asyncpool import AsyncTask
from celery_asyncpool.eager import call

from .base import configure, make_app
from .recording import record

app = make_app("unawaited")
configure(app, "UNAWAITED")


class AsyncCall(AsyncTask):
    abstract = True

    async def __call__(self, *args):
        return await self.run(*args)


class GivesCoroutine(AsyncTask):
    abstract = True

    def __call__(self, *args):
        return self.run(*args)


class RunsItself(AsyncTask):
    abstract = True

    def __call__(self, *args):
        return asyncio.run(super().__call__(*args))


@app.task(base=AsyncTask, ignore_result=True)
async def ignored(x):
    record("ran")
    return x


@app.task(base=AsyncTask)
async def kept(x):
    record("ran")
    return x


@app.task(base=AsyncTask, autoretry_for=(Exception,), max_retries=3, default_retry_delay=0)
async def retried(x):
    record("ran")
    return x


@app.task(base=AsyncCall)
async def async_call(x):
    record("ran")
    return x


@app.task(base=GivesCoroutine)
async def gives_coroutine(x):
    record("ran")
    return x


@app.task(base=Task, ignore_result=True)
async def plain(x):
    record("ran")


@app.task(base=RunsItself)
async def runs_itself(x):
    return x


def with_loop(function):
    @functools.wraps(function)
    def wrapper(*args):
        return asyncio.run(function(*args))

    return wrapper


@app.task(base=AsyncTask)
@with_loop
async def decorated(x):
    return x


@app.task(base=AsyncTask)
def computes(x):
    return x


@app.task(base=AsyncTask)
def awaits_another(x):
    async def both():
        return await kept(x) + await async_call(x) + await kept.run(x)

    return asyncio.run(both())


@app.task(base=AsyncTask)
def calls_eagerly(x):
    result = asyncio.run(call(lambda: kept.apply((x,))))
    return result.get(disable_sync_subtasks=False)
