"""Records the signals of worker processes, and what loop they run."""

import asyncio

from celery import signals

from .base import make_app
from .recording import record

app = make_app("lifecycle")


@signals.worker_process_init.connect
def on_init(**kwargs):
    record("init", loop=asyncio._get_running_loop() is not None)


@signals.worker_process_shutdown.connect
def on_shutdown(pid, exitcode, **kwargs):
    record("shutdown", exitcode=exitcode)


@app.task
async def loop_class():
    """Name of the loop's class."""
    cls = type(asyncio.get_running_loop())
    return f"{cls.__module__}.{cls.__name__}"
