"""Tasks of celery-batches, which run many calls at once, and tasks beside them."""

import asyncio
import threading

from celery_batches import Batches

from .base import make_app
from .recording import record

app = make_app("collected")
app.conf.worker_prefetch_multiplier = 2

OPTIONS = {"base": Batches, "flush_every": 4, "flush_interval": 1}


def store(requests):
    """Store what the calls give, as the documentation of celery-batches shows."""
    for request in requests:
        value = sum(request.args)
        app.backend.mark_as_done(request.id, value, request=request)


@app.task(**OPTIONS)
def def_early(requests):
    record("batch", size=len(requests), main=threading.current_thread() is threading.main_thread())
    store(requests)


@app.task(acks_late=True, **OPTIONS)
def def_late(requests):
    record("batch", size=len(requests), main=threading.current_thread() is threading.main_thread())
    store(requests)


@app.task(**OPTIONS)
async def async_early(requests):
    await collect(requests)


@app.task(acks_late=True, soft_time_limit=60, time_limit=30, **OPTIONS)
async def async_nonsense(requests):
    await collect(requests)


@app.task(acks_late=True, **OPTIONS)
async def async_late(requests):
    await collect(requests)


async def collect(requests):
    record("batch", size=len(requests), main=threading.current_thread() is threading.main_thread())
    await asyncio.sleep(0.05)
    await asyncio.to_thread(store, requests)


@app.task(acks_late=True, **OPTIONS)
def def_fails(requests):
    record("batch", size=len(requests))
    raise ValueError("no")


@app.task(acks_late=True, **OPTIONS)
async def async_fails(requests):
    record("batch", size=len(requests))
    raise ValueError("no")


@app.task(acks_late=True, **OPTIONS)
async def async_hangs(requests):
    record("batch", size=len(requests))
    await asyncio.sleep(60)


@app.task
async def add(x, y):
    return x + y
