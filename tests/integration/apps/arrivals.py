"""Bodies in which a limit gets lost easily, and what a lifespan sets of its loop."""

import asyncio
import contextlib
import gc
import os
from contextvars import ContextVar

import anyio
import redis.asyncio

from celery_asyncpool import lifespan

from .base import configure, make_app

app = make_app("arrivals")
configure(app, "ARRIVALS_CONF")

USER = ContextVar("user")


@lifespan(app)
async def client():
    if os.environ.get("ARRIVALS_EAGER"):
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    url = os.environ["ASYNCPOOL_TEST_BACKEND"]
    async with redis.asyncio.from_url(url, socket_timeout=30) as connected:
        yield connected


@app.task
async def talks_to_redis(key):
    while True:
        await client.get().incr(key)


@app.task
async def talks_to_redis_in_a_group(key):
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(talks_to_redis.run(key))


@app.task
async def waits_with_a_timeout(key):
    while True:
        await asyncio.wait_for(asyncio.sleep(0), 60)


@app.task
async def drops_cancellations(key):
    for _ in range(3):
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                await asyncio.sleep(0.01)
    await asyncio.sleep(600)


@app.task
async def has_time(how, seconds):
    """Has a time-out of its own."""
    if how == "timeout":
        async with asyncio.timeout(seconds):
            await asyncio.sleep(600)
    elif how == "wait_for":
        await asyncio.wait_for(asyncio.sleep(600), seconds)
    elif how == "group":
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(600))
    elif how == "move_on_after":
        with anyio.move_on_after(seconds):
            await anyio.sleep(600)
    elif how == "fail_after":
        with anyio.fail_after(seconds):
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, 600)


@app.task
async def pid():
    return os.getpid()


@app.task(ignore_result=True)
async def leaves_no_result():
    """Done within its first step where tasks are started eagerly."""


@app.task
async def has_children():
    async with asyncio.TaskGroup() as group:
        children = [group.create_task(leaves_no_result()), group.create_task(pid())]
    return children[1].result()


@app.task
async def leads_to_its_child():
    child = asyncio.create_task(asyncio.sleep(0))
    USER.set({"user": child})
    await child


@app.task
async def tasks_left():
    """asyncio tasks that are kept in this process, and have ended."""
    gc.collect()
    return sum(isinstance(found, asyncio.Task) and found.done() for found in gc.get_objects())
