"""The tasks of the soak: each kind of body, with late acknowledgement.

Each returns the *token* with which it was sent, so that a result that went to
another task is seen.
"""

import asyncio
import contextlib
import subprocess
import time

from celery.exceptions import SoftTimeLimitExceeded

from . import deliveries
from .base import make_app

FOREVER = 600

app = make_app("soak")
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    # A task that was in three processes that died fails for good. Here they are
    # killed at random, and most tasks are innocent.
    asyncpool_max_crashes=1_000_000,
    asyncpool_cancel_grace=2,
    # A stopped process may come up late.
    worker_proc_alive_timeout=20,
    worker_pool_restarts=True,
    # What a retry publishes must reach the broker however long it is away:
    # otherwise Celery rejects the task.
    broker_transport_options={"confirm_publish": True},
    task_publish_retry_policy={
        "max_retries": 1000,
        "interval_start": 0.1,
        "interval_step": 0.1,
        "interval_max": 0.5,
    },
    broker_connection_max_retries=None,
    result_expires=24 * 3600,
)
deliveries.install(app)


@contextlib.contextmanager
def body(task):
    """Record that a body starts, and how it ends, if it does."""
    request = task.request
    run = {"id": request.id, "delivery": getattr(request, deliveries.DELIVERY_HEADER)}
    deliveries.note("started", **run)
    how = "returned"
    try:
        yield
    except BaseException as exc:
        how = type(exc).__name__
        raise
    finally:
        deliveries.note("ended", how=how, **run)


# Bodies that end by themselves.


@app.task(bind=True)
async def nap(self, token, seconds):
    with body(self):
        await asyncio.sleep(seconds)
        return token


@app.task(bind=True)
async def burn(self, token, seconds):
    with body(self):
        await asyncio.sleep(0)
        _burn(seconds)
        await asyncio.sleep(0)
        return token


@app.task(bind=True)
def def_burn(self, token, seconds):
    with body(self):
        _burn(seconds)
        return token


@app.task(bind=True)
def def_nap(self, token, seconds):
    with body(self):
        time.sleep(seconds)
        return token


@app.task(bind=True)
async def fail(self, token, seconds):
    with body(self):
        await asyncio.sleep(seconds)
        raise ValueError(token)


@app.task(bind=True)
def def_fail(self, token, seconds):
    with body(self):
        time.sleep(seconds)
        raise ValueError(token)


@app.task(bind=True)
async def spawn(self, token, seconds, session):
    """Wait for a subprocess, perhaps one that leaves the process's group."""
    with body(self):
        process = await asyncio.create_subprocess_exec(*_sleep(seconds), start_new_session=session)
        return [token, await process.wait()]


@app.task(bind=True)
def def_spawn(self, token, seconds, session):
    with body(self):
        process = subprocess.run(_sleep(seconds), start_new_session=session)
        return [token, process.returncode]


@app.task(bind=True)
async def block(self, token, seconds):
    """Block the loop."""
    with body(self):
        time.sleep(seconds)
        return token


# Retries.


@app.task(bind=True, max_retries=None)
async def retry(self, token, times, countdown, fails):
    with body(self):
        await asyncio.sleep(0.05)
        if self.request.retries < times:
            raise self.retry(countdown=countdown)
        if fails:
            raise KeyError(token)
        return token


@app.task(bind=True, max_retries=None)
def def_retry(self, token, times, countdown, fails):
    with body(self):
        time.sleep(0.05)
        if self.request.retries < times:
            raise self.retry(countdown=countdown)
        if fails:
            raise KeyError(token)
        return token


# Bodies that meet their time limits.


@app.task(bind=True)
async def overrun(self, token):
    with body(self):
        await asyncio.sleep(FOREVER)


@app.task(bind=True)
async def clean_up(self, token):
    """Catch the soft limit, await, and return."""
    with body(self):
        try:
            await asyncio.sleep(FOREVER)
        except SoftTimeLimitExceeded:
            await asyncio.sleep(0.1)
            return token


@app.task(bind=True)
def def_overrun(self, token):
    with body(self):
        while True:
            time.sleep(0.05)


@app.task(bind=True)
async def spawn_overrun(self, token):
    with body(self):
        process = await asyncio.create_subprocess_exec(*_sleep(FOREVER))
        try:
            await process.wait()
        finally:
            process.kill()
            await process.wait()


@app.task(bind=True)
async def refuse(self, token):
    """Do not end when cancelled."""
    with body(self):
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(FOREVER)


@app.task(bind=True)
async def block_on(self, token):
    """Block the loop until the process is killed."""
    with body(self):
        time.sleep(FOREVER)


def _burn(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1000))


def _sleep(seconds):
    return ["sleep", str(seconds)]
