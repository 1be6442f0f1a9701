"""What does it cost to run one no-op task through Celery's tracer, from a message's body?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import uvloop
from celery import Celery
from celery.app.trace import fast_trace_task, setup_worker_optimizations

from celery_asyncpool.child.jobcontext import JobContext, enter_job
from celery_asyncpool.child.tasks import build_trace, prepare
from celery_asyncpool.child.trace import drive

from .clock import report

COUNT = 500
BODY = json.dumps([[], {}, {}])

app = Celery("micro", broker="memory://", set_as_current=False)


@app.task(name="sync", ignore_result=True, shared=False)
def plain() -> None:
    """Run by Celery alone, as prefork does."""


@app.task(name="async", ignore_result=True, shared=False)
async def coroutine() -> None:
    """Run by Celery in a greenlet, and on the loop."""


def call(name: str) -> tuple[Any, ...]:
    """The arguments of the tracer for one message."""
    uuid = str(uuid4())
    request = {"task": name, "id": uuid, "root_id": uuid, "parent_id": None, "hostname": "micro"}
    return name, uuid, request, BODY, "application/json", "utf-8"


def trace_plain() -> None:
    """COUNT tasks, one after the other."""
    for _ in range(COUNT):
        fast_trace_task(*call("sync"))


async def trace_one(number: int) -> None:
    """One job, as a worker process runs it."""
    enter_job(JobContext(number))
    await drive(fast_trace_task, *call("async"))


def trace_async(loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    """COUNT tasks, all at once."""

    async def turn() -> None:
        await asyncio.gather(*map(trace_one, range(COUNT)))

    return lambda: loop.run_until_complete(turn())


def main() -> None:
    """Celery's own way, and this pool's."""
    setup_worker_optimizations(app)
    build_trace(app, app.tasks["sync"])
    prepare(app.tasks["async"])
    build_trace(app, app.tasks["async"])
    report("a def task, traced by Celery", trace_plain, COUNT)
    loop = uvloop.new_event_loop()
    report("an async def task, traced on the loop", trace_async(loop), COUNT)
    loop.close()


if __name__ == "__main__":
    main()
