"""The app of client.py, whose main process dispatches and waits before it forks the pool."""

import asyncio
import os
import threading

from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.signals import worker_init

from celery_asyncpool import get

from .client import add, app
from .recording import record

__all__ = ["app"]


@worker_init.connect
def use_client(**kwargs):
    asyncio.run(dispatch())
    names = [thread.name for thread in threading.enumerate()]
    record("threads", pid=os.getpid(), names=names)


async def dispatch():
    result = await add.adelay(1, 2)
    try:
        await get(result, timeout=0.1)  # nobody is there to run it yet
    except CeleryTimeoutError:
        record("waited")
