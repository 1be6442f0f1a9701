"""Tasks for faults: each run records its start and its end, each task twice: early and late.

``hold`` acknowledges early, as is Celery's default, and ``hold_late`` late,
with ``reject_on_worker_lost``; so do the others.
"""

import asyncio
import inspect
import os
import time

from celery.worker.control import inspect_command

from .base import configure, make_app
from .recording import record

app = make_app("chaos")
configure(app, "CHAOS_CONF")


@inspect_command()
def pool_timers(state):
    """Names of the pool's own timers in the hub of the worker's main process."""
    entries = [scheduled.entry for scheduled in state.consumer.timer.queue]
    functions = [entry.fun for entry in entries if not entry.canceled]
    return sorted(f.__qualname__ for f in functions if f.__module__.startswith("celery_asyncpool"))


def task(body):
    """Make two tasks of *body*, of which each run records how it goes."""
    if inspect.iscoroutinefunction(body):

        async def run(self, *args):
            record("started", id=self.request.id)
            try:
                value = await body(*args)
            except BaseException:
                record("broken off", id=self.request.id)
                raise
            record("ended", id=self.request.id)
            return value

    else:

        def run(self, *args):
            record("started", id=self.request.id)
            try:
                value = body(*args)
            except BaseException:
                record("broken off", id=self.request.id)
                raise
            record("ended", id=self.request.id)
            return value

    name = f"{__name__}.{body.__name__}"
    app.task(run, bind=True, name=name)
    app.task(run, bind=True, name=f"{name}_late", acks_late=True, reject_on_worker_lost=True)
    return body


@task
async def hold(gate, payload=""):
    """Wait for the file *gate*; return the process's pid."""
    while not os.path.exists(gate):
        await asyncio.sleep(0.1)
    return os.getpid()


@task
def thread_hold(gate):
    """The same in a thread."""
    while not os.path.exists(gate):
        time.sleep(0.1)
    return os.getpid()


@task
async def pid(payload=""):
    """Return the process's pid at once."""
    return os.getpid()


@task
async def compute(seconds):
    """Use the CPU in small steps."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(10_000))
        await asyncio.sleep(0)
    return os.getpid()


@task
async def block(seconds):
    """Block the loop."""
    time.sleep(seconds)
    return os.getpid()


@task
async def forever():
    """Wait for nothing."""
    await asyncio.Event().wait()


@task
async def spawn(gate):
    """Hold with two subprocesses, one of them in a session of its own."""
    processes = []
    for options in ({}, {"start_new_session": True}):
        process = await asyncio.create_subprocess_exec("sleep", "600", **options)
        record("sleeper", sleeper=process.pid)
        processes.append(process)
    while not os.path.exists(gate):
        await asyncio.sleep(0.1)
    for process in processes:
        process.kill()
        await process.wait()
