"""An app with settings from the environment: `CONFIGURED`, or Django's with `DJANGO`."""

import asyncio
import gc
import os

from celery import signals

from .base import configure, make_app
from .recording import record

app = make_app("configured")
if "DJANGO" in os.environ:
    app.config_from_object("django.conf:settings", namespace="CELERY")
configure(app, "CONFIGURED")


@signals.worker_process_init.connect
def on_init(**kwargs):
    record("init", spawned=os.environ.get("FORKED_BY_MULTIPROCESSING") == "1")


@signals.worker_ready.connect
def on_ready(**kwargs):
    record("ready", gc_threshold=gc.get_threshold()[0])


@app.task
async def gc_threshold():
    """New objects after which the garbage collector looks."""
    return gc.get_threshold()[0]


@app.task
async def loop_class():
    """Name of the running loop's class."""
    cls = type(asyncio.get_running_loop())
    return f"{cls.__module__}.{cls.__name__}"


@app.task
def add(x, y):
    """Add."""
    return x + y
