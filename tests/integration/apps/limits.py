"""Bodies of many shapes, for time limits and revokes, and a record of their ends."""

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time

import anyio
import celery
from celery import signals
from celery.exceptions import SoftTimeLimitExceeded

from .base import configure, make_app
from .recording import record

app = make_app("limits")
configure(app, "LIMITS_CONF")

FOREVER = 600


# What the world hears of a task's end.


@signals.task_failure.connect
def on_failure(task_id, exception, **kwargs):
    record("task_failure", id=task_id, type=type(exception).__name__)


@signals.task_revoked.connect
def on_revoked(request, terminated, **kwargs):
    record("task_revoked", id=request.id)
    if os.environ.get("LIMITS_QUIT_AT_REVOKE"):
        os.kill(os.getpid(), signal.SIGQUIT)  # its handler interrupts the report


@signals.task_success.connect
def on_success(sender, **kwargs):
    record("task_success", id=sender.request.id)


@signals.task_postrun.connect
def on_postrun(task_id, **kwargs):
    record("task_postrun", id=task_id)


@signals.task_retry.connect
def on_retry(request, **kwargs):
    record("task_retry", id=request.id)


class Recorded(celery.Task):
    """Records its failure handler."""

    abstract = True

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        record("on_failure", id=task_id, type=type(exc).__name__)


# Shapes: each waits for something that never comes.


async def plain():
    await asyncio.sleep(FOREVER)


async def in_task_group():
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(FOREVER))
        await asyncio.sleep(FOREVER)


async def at_end_of_task_group():
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(FOREVER))
        group.create_task(asyncio.sleep(FOREVER))


async def in_timeout():
    async with asyncio.timeout(FOREVER):
        await asyncio.sleep(FOREVER)


async def in_wait_for():
    await asyncio.wait_for(asyncio.sleep(FOREVER), FOREVER)


async def in_gather():
    await asyncio.gather(asyncio.sleep(FOREVER), asyncio.sleep(FOREVER))


async def in_shield():
    inner = asyncio.ensure_future(asyncio.sleep(FOREVER))
    try:
        await asyncio.shield(inner)
    finally:
        inner.cancel()


async def in_anyio_group():
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, FOREVER)
        await anyio.sleep(FOREVER)


async def in_anyio_scope():
    with anyio.fail_after(FOREVER):
        await anyio.sleep(FOREVER)


async def in_semaphore():
    semaphore = asyncio.Semaphore(1)
    async with semaphore:
        await semaphore.acquire()


async def in_queue():
    await asyncio.Queue().get()


async def in_event():
    await asyncio.Event().wait()


async def in_lock():
    lock = asyncio.Lock()
    async with lock, lock:
        pass


async def in_subprocess():
    process = await asyncio.create_subprocess_exec("sleep", str(FOREVER))
    try:
        await process.wait()
    finally:
        process.kill()
        await process.wait()


async def in_thread():
    stop = threading.Event()
    try:
        await asyncio.to_thread(stop.wait, FOREVER)
    finally:
        stop.set()


async def in_generator():
    async def forever():
        try:
            while True:
                await asyncio.sleep(FOREVER)
                yield
        finally:
            await asyncio.sleep(0)

    async with contextlib.aclosing(forever()) as steps:
        async for _ in steps:
            pass


async def in_child_task():
    await asyncio.create_task(asyncio.sleep(FOREVER))


SHAPES = {
    shape.__name__: shape
    for shape in (
        plain,
        in_task_group,
        at_end_of_task_group,
        in_timeout,
        in_wait_for,
        in_gather,
        in_shield,
        in_anyio_group,
        in_anyio_scope,
        in_semaphore,
        in_queue,
        in_event,
        in_lock,
        in_subprocess,
        in_thread,
        in_generator,
        in_child_task,
    )
}


@app.task(bind=True, base=Recorded)
async def shaped(self, shape):
    """Run one shape; record what the body sees of its end."""
    record("started", id=self.request.id)
    try:
        await SHAPES[shape]()
    except SoftTimeLimitExceeded:
        record("saw", id=self.request.id, what_it_saw="SoftTimeLimitExceeded")
        raise
    except asyncio.CancelledError:
        record("saw", id=self.request.id, what_it_saw="CancelledError")
        raise
    except BaseExceptionGroup as group:
        # What is raised in a TaskGroup's block leaves it in a group.
        if group.split(SoftTimeLimitExceeded)[1] is None:
            record("saw", id=self.request.id, what_it_saw="SoftTimeLimitExceeded")
        raise
    finally:
        async with asyncio.timeout(5):
            await asyncio.sleep(0.01)
        record("cleaned up", id=self.request.id)


@app.task(bind=True, base=Recorded)
async def handles_soft_limit(self):
    """Catch the soft limit, clean up with timeouts of its own, return."""
    record("started", id=self.request.id)
    try:
        await asyncio.sleep(FOREVER)
    except SoftTimeLimitExceeded:
        try:
            async with asyncio.timeout(0.05):
                await asyncio.sleep(FOREVER)
        except TimeoutError:
            pass
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0.01))
    return "cleaned up"


@app.task(bind=True, base=Recorded)
async def refuses(self, path):
    """Swallow every cancellation until *path* exists."""
    record("started", id=self.request.id)
    while not os.path.exists(path):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)
    record("ended late", id=self.request.id)
    return "too late"


@app.task(bind=True, base=Recorded)
async def blocks(self, seconds):
    """Block the loop."""
    record("started", id=self.request.id)
    await asyncio.sleep(0.05)
    time.sleep(seconds)  # the blocking line
    return "free"


@app.task(bind=True, base=Recorded)
def def_sleeps(self, seconds):
    """A call into C that only ends by itself."""
    record("started", id=self.request.id)
    time.sleep(seconds)
    record("ended late", id=self.request.id)
    return "slept"


@app.task(bind=True, base=Recorded)
def def_spins(self):
    """Python code that goes on and on."""
    record("started", id=self.request.id)
    try:
        while True:
            time.sleep(0.01)
    except SoftTimeLimitExceeded:
        record("saw", id=self.request.id, what_it_saw="SoftTimeLimitExceeded")
        raise
    finally:
        record("cleaned up", id=self.request.id)


@app.task(bind=True)
async def neighbour(self, seconds):
    """An innocent bystander."""
    record("started", id=self.request.id)
    await asyncio.sleep(seconds)
    return os.getpid()


@app.task(bind=True, base=Recorded)
async def hold(self, path):
    """Wait for *path*."""
    record("started", id=self.request.id)
    while not os.path.exists(path):
        await asyncio.sleep(0.02)
    return "held"


@app.task(bind=True, base=Recorded, max_retries=2)
async def retries_at_limit(self):
    """Ask for a retry when the soft limit comes."""
    record("started", id=self.request.id)
    try:
        await asyncio.sleep(FOREVER)
    except SoftTimeLimitExceeded as exc:
        raise self.retry(exc=exc, countdown=0) from exc


@app.task(bind=True, base=Recorded, autoretry_for=(Exception,), max_retries=5)
async def autoretried(self):
    """A hard limit is no reason to retry."""
    record("started", id=self.request.id)
    await asyncio.sleep(FOREVER)


@app.task(bind=True, base=Recorded)
async def racing(self, seconds):
    """End at about the same time as a limit does."""
    await asyncio.sleep(seconds)
    return "in time"


@app.task
def errback(request, exc, traceback):
    record("errback", id=request.id, type=type(exc).__name__)


@app.task
async def left_behind():
    """Count what earlier bodies have left in this process."""
    await asyncio.sleep(0)
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    threads = [thread.name for thread in threading.enumerate() if "def" in thread.name]
    listing = subprocess.run(
        ["ps", "-o", "comm=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    return {
        "tasks": [repr(task) for task in tasks],
        "threads": threads,
        "subprocesses": [name for name in listing.stdout.split() if name == "sleep"],
    }
