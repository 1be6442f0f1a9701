"""Lifespans that record what becomes of them, and tasks that use them."""

import asyncio
import os
import signal

from celery import signals

from celery_asyncpool import LifespanError, lifespan
from celery_asyncpool.signals import (
    asyncpool_process_started,
    asyncpool_process_stopped,
    asyncpool_process_stopping,
)

from .base import configure, make_app
from .recording import record

app = make_app("lifespans")
configure(app, "LIFESPANS_CONF")

#: What goes wrong on purpose.
FAULT = os.environ.get("LIFESPANS_FAULT", "")


class Resource:
    def __init__(self, name):
        self.name = name
        self.is_open = True


@lifespan(app)
async def first():
    record("first opens")
    if FAULT == "fails":
        raise ConnectionError("no such host")
    if FAULT == "hangs":
        await asyncio.sleep(600)
    resource = Resource("first")
    async with asyncio.timeout(None):  # to be left in the task that entered it
        yield resource
    resource.is_open = False
    record("first closes")
    if FAULT == "fails at its end":
        raise ConnectionError("gone already")


@lifespan(app)
async def second():
    record("second opens", uses=first.get().name)
    yield Resource("second")
    record("second closes", first_is_open=first.get().is_open)


@lifespan(app, lazy=True)
async def lazy():
    record("lazy opens")
    await asyncio.sleep(0.2)  # others ask for it meanwhile
    resource = Resource("lazy")
    yield resource
    record("lazy closes")


@asyncpool_process_started.connect
async def on_started(sender, hostname, **kwargs):
    await asyncio.sleep(0)
    record("started", app=sender.main, hostname=hostname, first_is_open=first.get().is_open)


@asyncpool_process_stopping.connect
def on_stopping(sender, **kwargs):
    record("stopping", first_is_open=first.get().is_open)


@asyncpool_process_stopped.connect
async def on_stopped(sender, **kwargs):
    await asyncio.sleep(0)
    record("stopped")
    raise ValueError("a receiver that fails")


if FAULT == "handlers":

    @signals.worker_process_init.connect
    def set_handler(**kwargs):
        signal.signal(signal.SIGCHLD, lambda signum, frame: os.waitpid(-1, os.WNOHANG))

    @signals.worker_process_init.connect
    async def never_awaited(**kwargs):
        record("never")

    @signals.task_received.connect(sender="somebody")
    async def never_awaited_either(**kwargs):
        record("never")


@app.task
async def names():
    """What the process shares, the same object for all of its tasks."""
    return os.getpid(), first.get().name, second.get().name, id(first.get())


@app.task
def names_in_thread():
    return os.getpid(), first.get().name


@app.task
async def use_lazy():
    try:
        return os.getpid(), id(lazy.get())
    except LifespanError:
        resource = await lazy.start()
        assert lazy.get() is resource
        return os.getpid(), id(resource)


@app.task
async def use_until(gate):
    resource = await lazy.start()
    record("in use", name=resource.name)
    try:
        while not os.path.exists(gate):
            await asyncio.sleep(0.02)
    finally:
        record("used", first_is_open=first.get().is_open)


@app.task
async def replace_lazy():
    """Two notice the same dead resource; it is replaced once."""
    broken = await lazy.start()
    one, other = await asyncio.gather(lazy.restart(broken), lazy.restart(broken))
    assert one is other is lazy.get()
    assert one is not broken
    assert await lazy.restart(broken) is one
    return id(one)


@app.task
async def exit_codes():
    processes = [
        await asyncio.create_subprocess_exec("sh", "-c", f"exit {code}") for code in range(20)
    ]
    return [await process.wait() for process in processes]
