"""Tasks that end in every way, and a record of the worker's signals."""

import asyncio
import os
import signal

from celery import signals, states
from celery.exceptions import Reject

from .base import configure, make_app
from .recording import record

app = make_app("operations")
configure(app, "OPERATIONS_CONF")


@signals.worker_init.connect
def on_worker_init(**kwargs):
    record("worker_init")


@signals.worker_ready.connect
def on_worker_ready(**kwargs):
    record("worker_ready")


@signals.worker_shutdown.connect
def on_worker_shutdown(**kwargs):
    record("worker_shutdown")


@signals.worker_before_create_process.connect
def on_before_create_process(sender, **kwargs):
    record("worker_before_create_process", sender=type(sender).__name__)


@signals.worker_process_init.connect
def on_process_init(**kwargs):
    record("worker_process_init")


@signals.worker_process_shutdown.connect
def on_process_shutdown(pid, exitcode, **kwargs):
    record("worker_process_shutdown")


@signals.task_success.connect
def on_success(sender, runtime=None, **kwargs):
    record("task_success", id=sender.request.id, runtime=runtime)


@signals.task_failure.connect
def on_failure(task_id, exception, **kwargs):
    record("task_failure", id=task_id, type=type(exception).__name__)


@app.task(bind=True)
async def ok(self, value=None):
    """Return what it is given, and in which process it ran."""
    record("started", id=self.request.id)
    await asyncio.sleep(0)
    return [value, os.getpid()]


@app.task(bind=True)
async def async_replace(self, queue):
    """Leave the result to a task on *queue*."""
    raise self.replace(ok.s("replaced").set(queue=queue))


@app.task(bind=True)
def def_replace(self, queue):
    """The same in a thread."""
    raise self.replace(ok.s("replaced").set(queue=queue))


@app.task
async def nap(seconds):
    await asyncio.sleep(seconds)


@app.task
async def fail():
    raise ValueError("as it should")


def _die(how):
    if how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "os._exit":
        os._exit(1)
    raise SystemExit(1)


@app.task(bind=True)
async def die(self, how):
    """End the process, or try to."""
    record("started", id=self.request.id)
    await asyncio.sleep(0)
    _die(how)


@app.task(bind=True)
async def overrun(self):
    """Never end."""
    record("started", id=self.request.id)
    await asyncio.sleep(600)


@app.task(
    bind=True, acks_late=True, reject_on_worker_lost=True, max_retries=2, default_retry_delay=0
)
async def die_again(self):
    """End the process each time it is tried."""
    record("started", id=self.request.id, retries=self.request.retries)
    await asyncio.sleep(0)
    _die("SIGKILL")


def _store_and_reject(self):
    record("started", id=self.request.id)
    self.backend.store_result(self.request.id, "first", states.SUCCESS, request=self.request)
    raise Reject("delivered again", requeue=True)


@app.task(bind=True)
async def async_store_and_reject(self):
    """Succeed, and be delivered again, as when the ack is lost."""
    await asyncio.to_thread(_store_and_reject, self)


@app.task(bind=True)
def def_store_and_reject(self):
    """The same in a thread."""
    _store_and_reject(self)


@app.task
async def got(value):
    """Record what the task before has returned."""
    record("got", value=value)
    return value


@app.task
async def errback(request, exc, traceback):
    record("errback", id=request.id, type=type(exc).__name__)


@app.task
def def_errback(request, exc, traceback):
    record("errback", id=request.id, type=type(exc).__name__)
