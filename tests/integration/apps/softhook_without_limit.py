"""A task with a hook that no soft limit would call."""

import os

import celery

from celery_asyncpool import AsyncTask

from .base import make_app

app = make_app("softhook_without_limit")

BASES = {"Task": celery.Task, "AsyncTask": AsyncTask}


@app.task(base=BASES[os.environ["SOFTHOOK_BASE"]], on_soft_limit=print)
async def hook_without_limit():
    """Nothing would ever call this hook."""
