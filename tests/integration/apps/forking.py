"""A project whose main process forks when the worker is up: one sleeps, one ends."""

import asyncio
import os
import signal
import time

from celery.signals import worker_ready

from .base import configure, make_app
from .recording import record

app = make_app("forking")
configure(app, "FORKING_CONF")


@worker_ready.connect
def fork(**kwargs):
    """As ``multiprocessing`` and monitoring agents do."""
    sleeper = os.fork()
    if sleeper == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(600)
        os._exit(0)
    short = os.fork()
    if short == 0:
        raise SystemExit(0)  # through Python's own exit, atexit functions included
    os.waitpid(short, 0)
    record("forked", sleeper=sleeper)


@app.task
async def wait(seconds):
    """Await *seconds*."""
    await asyncio.sleep(seconds)
    return os.getpid()
