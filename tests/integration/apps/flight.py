"""Tasks that tell how many of them are in flight, through Redis."""

import asyncio
import os

import redis.asyncio

from .base import make_app
from .recording import record

app = make_app("flight")

_client = None


def client():
    """One client for all tasks of this process."""
    global _client
    if _client is None:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            os.environ["FLIGHT_REDIS"], max_connections=20, timeout=None
        )
        _client = redis.asyncio.Redis(connection_pool=pool)
    return _client


@app.task
async def all_start(key, count):
    """Return this process's pid once *count* of these tasks are running."""
    global _all_here
    await client().incr(key)
    if _all_here is None:
        _all_here = asyncio.create_task(_count_to(key, count))
    await asyncio.shield(_all_here)
    return os.getpid()


_all_here = None  # one task of a process asks, and the others wait for it


async def _count_to(key, count):
    while int(await client().get(key)) < count:
        await asyncio.sleep(0.1)


async def _gate(path):
    while not os.path.exists(path):
        await asyncio.sleep(0.05)


@app.task
async def wait(path, name):
    """Wait for the file *path*."""
    record("started", name=name)
    await _gate(path)
    record("ended", name=name)
    return os.getpid()


@app.task(acks_late=True, reject_on_worker_lost=True)
async def wait_late(path, name):
    """The same with late acknowledgement, to be redelivered when the process is lost."""
    record("started", name=name)
    await _gate(path)
    return os.getpid()


@app.task
async def pid():
    """Return the process's pid."""
    return os.getpid()


@app.task(bind=True)
async def spawn_sleeper(self, path):
    """Start subprocesses, one of them in a session of its own, and wait for *path*."""
    record("started", id=self.request.id)
    for options in ({}, {"start_new_session": True}):
        process = await asyncio.create_subprocess_exec("sleep", "600", **options)
        record("sleeper", sleeper=process.pid)
    await _gate(path)
