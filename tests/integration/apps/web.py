"""A web app that dispatches tasks and awaits their results; uvicorn runs it.

It measures how long its event loop does not turn.
"""

import asyncio
import threading
import time
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from kombu.exceptions import OperationalError

from celery_asyncpool import get

from .client import add


class Pulse:
    """Beats on the loop; remembers how often, the longest pause, and the most threads."""

    def __init__(self):
        self.beats = 0
        self.longest = 0.0
        self.threads = 0

    async def beat(self):
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            self.beats += 1
            self.longest = max(self.longest, time.monotonic() - before)
            self.threads = max(self.threads, threading.active_count())

    def take(self):
        taken = {"beats": self.beats, "longest": self.longest, "threads": self.threads}
        self.beats, self.longest = 0, 0.0
        return taken


pulse = Pulse()


@asynccontextmanager
async def lifespan(api):
    beating = asyncio.create_task(pulse.beat())
    yield
    beating.cancel()


api = FastAPI(lifespan=lifespan)


@api.exception_handler(OperationalError)
async def on_broker_error(request, exc):
    return PlainTextResponse(str(exc), status_code=503)


@api.get("/pulse")
async def take_pulse():
    return pulse.take()


@api.post("/add")
async def add_numbers(x: int, y: int) -> int:
    return await get(await add.adelay(x, y))
