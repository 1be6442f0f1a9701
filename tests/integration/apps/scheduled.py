"""Tasks for beat, and a schedule that the environment gives."""

import asyncio
import json
import os

from celery import signals

from .base import make_app
from .recording import record

app = make_app("scheduled")
app.conf.update(
    worker_pool_restarts=True,
    beat_schedule=json.loads(os.environ.get("SCHEDULED_ENTRIES", "{}")),
    # No task of these tests waits for longer than this when a schedule changes.
    beat_max_loop_interval=1,
)
if "SCHEDULED_REDBEAT_PREFIX" in os.environ:
    app.conf.redbeat_redis_url = app.conf.result_backend
    app.conf.redbeat_key_prefix = os.environ["SCHEDULED_REDBEAT_PREFIX"]
    app.conf.redbeat_lock_timeout = 5


@signals.beat_embedded_init.connect
def on_embedded_beat(**kwargs):
    record("beat")


@app.task(bind=True)
async def async_tick(self, what="tick"):
    """Record the run."""
    await asyncio.sleep(0)
    record("ran", id=self.request.id, name=what)


@app.task(bind=True)
def def_tick(self, what="tick"):
    """The same."""
    record("ran", id=self.request.id, name=what)


@app.task
async def plan(name, task, seconds):
    """Schedule another task, with RedBeat's calls, which block."""
    from celery.schedules import schedule
    from redbeat import RedBeatSchedulerEntry

    entry = RedBeatSchedulerEntry(
        name, f"apps.scheduled.{task}", schedule(seconds), args=[name], app=app
    )
    await asyncio.to_thread(entry.save)
    return entry.key


@app.task
async def unplan(key):
    """Take it off the schedule; return how often beat has sent it."""
    from redbeat import RedBeatSchedulerEntry

    entry = await asyncio.to_thread(RedBeatSchedulerEntry.from_key, key, app=app)
    await asyncio.to_thread(entry.delete)
    return entry.total_run_count
