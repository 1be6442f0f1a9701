"""Tasks that store how far they have got, and go on from there."""

import asyncio
import os

from celery_asyncpool import AsyncTask

from .base import configure, make_app
from .recording import record

app = make_app("checkpoints")
configure(app, "CHECKPOINTS_CONF")


async def until(path):
    while not os.path.exists(path):
        await asyncio.sleep(0.02)


@app.task(bind=True, base=AsyncTask, acks_late=True, reject_on_worker_lost=True)
async def counts(self, gate, stop_at, total):
    """Count to *total*; wait for *gate* at *stop_at*."""
    done = await self.alast_checkpoint()
    record("started", id=self.request.id)
    record("resumed", id=self.request.id, at=done)
    for number in range(done["number"] if done else 0, total):
        if number == stop_at:
            record("waiting", id=self.request.id)
            await until(gate)
        await self.acheckpoint({"number": number + 1, "of": total})
    return "counted"


@app.task(bind=True, base=AsyncTask, max_retries=2)
async def retries(self):
    """Get one step further in each run."""
    state = await self.alast_checkpoint()
    record("resumed", id=self.request.id, at=state)
    state = [*(state or []), self.request.retries]
    await self.acheckpoint(state)
    if self.request.retries < 2:
        raise await self.aretry(countdown=0)
    return state


@app.task(bind=True, base=AsyncTask, autoretry_for=(ValueError,), retry_kwargs={"countdown": 0})
async def fails(self):
    """Fail in the first run; what the second run knows."""
    state = await self.alast_checkpoint()
    if state is None:
        await self.acheckpoint("before it failed")
        raise ValueError("once")
    return state


@app.task(bind=True, base=AsyncTask)
async def fails_for_good(self):
    await self.acheckpoint("so far")
    raise ValueError("for good")


@app.task(bind=True, base=AsyncTask)
async def ordered(self, count):
    """Many at a time, of a state that changes: the last call's state is what is stored."""
    state = {"number": 0}
    calls = []
    for number in range(count):
        state["number"] = number
        calls.append(asyncio.ensure_future(self.acheckpoint(state)))
        await asyncio.sleep(0)  # it has been called, and may be under way
    state["number"] = "changed since"
    return await self.alast_checkpoint(), sum(call.done() for call in calls)


@app.task(bind=True, base=AsyncTask)
async def cannot_be_encoded(self):
    await self.acheckpoint({"loop": object()})


@app.task(bind=True, base=AsyncTask)
async def limited(self):
    """What is stored when the soft limit interrupts a write that takes long."""
    record("started", id=self.request.id)
    await self.acheckpoint("written")
    return "stored"


@app.task
async def neighbour():
    await asyncio.sleep(0)
    record("neighbour")
