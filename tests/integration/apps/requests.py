"""Tasks with `Request` classes of their own."""

import asyncio
import time

from celery import Task
from celery.worker.request import Request

from .base import make_app
from .recording import record

app = make_app("requests")
app.conf.asyncpool_cancel_grace = 1.0


class Told(Request):
    """Says what it is told, in the words of Celery's documentation."""

    def on_accepted(self, pid, time_accepted):
        super().on_accepted(pid, time_accepted)
        record("accepted", id=self.id)

    def on_timeout(self, soft, timeout):
        super().on_timeout(soft, timeout)
        record("soft timeout" if soft else "hard timeout", id=self.id, timeout=timeout)

    def on_failure(self, exc_info, send_failed_event=True, return_ok=False):
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
        record("failure", id=self.id)

    def on_retry(self, exc_info):
        super().on_retry(exc_info)
        record("retry", id=self.id)


class Deaf(Told):
    """Tells Celery nothing of timeouts."""

    def on_timeout(self, soft, timeout):
        record("soft timeout" if soft else "hard timeout", id=self.id, timeout=timeout)


class Base(Task):
    abstract = True
    Request = Told


class DeafBase(Task):
    abstract = True
    Request = "apps.requests:Deaf"


def pause(seconds):
    """Wait in Python, where a limit can be raised in the thread."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


@app.task(base=Base)
def def_fine():
    return "fine"


@app.task(base=Base)
def def_fails():
    raise ValueError("no")


@app.task(base=Base, bind=True, max_retries=1)
def def_retries(self):
    if not self.request.retries:
        raise self.retry(countdown=0)
    return "fine"


@app.task(base=Base, soft_time_limit=0.5, time_limit=50)
def def_soft():
    pause(40)


@app.task(base=Base, time_limit=1)
def def_hard():
    pause(40)


@app.task(base=DeafBase, time_limit=1)
def def_deaf():
    pause(40)


@app.task(base=Base)
async def async_fine():
    return "fine"


@app.task(base=Base)
async def async_fails():
    raise ValueError("no")


@app.task(base=Base, bind=True, max_retries=1)
async def async_retries(self):
    if not self.request.retries:
        raise self.retry(countdown=0)
    return "fine"


@app.task(base=Base, soft_time_limit=0.5, time_limit=50)
async def async_soft():
    await asyncio.sleep(40)


@app.task(base=Base, time_limit=1)
async def async_hard():
    await asyncio.sleep(40)


@app.task(base=DeafBase, time_limit=1)
async def async_deaf():
    await asyncio.sleep(40)


@app.task(base=Base, time_limit=1)
async def async_refuses():
    while True:
        try:
            await asyncio.sleep(40)
        except asyncio.CancelledError:
            continue


@app.task(base=Base, time_limit=1)
async def async_blocks():
    time.sleep(40)


@app.task(base=Base)
async def async_waits():
    record("started", id=app.current_task.request.id)
    await asyncio.sleep(40)
