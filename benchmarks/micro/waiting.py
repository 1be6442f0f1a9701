"""How much memory does a task take while it waits?

In one process, without a broker: the greenlet of Celery's tracer, the asyncio
task, the job's control and its context.
"""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import uvloop
from celery import Celery
from celery.app.trace import fast_trace_task, setup_worker_optimizations

from celery_asyncpool.child.jobcontext import JobContext, enter_job
from celery_asyncpool.child.tasks import build_trace, prepare
from celery_asyncpool.child.trace import drive

from .traced import call

COUNTS = (1_000, 10_000)

app = Celery("micro-waiting", broker="memory://", set_as_current=False)
gate = asyncio.Event()


@app.task(name="async", ignore_result=True, shared=False)
async def wait() -> None:
    """Wait for the gate."""
    await gate.wait()


async def trace_one(number: int) -> None:
    """One job, as a worker process runs it."""
    enter_job(JobContext(number))
    await drive(fast_trace_task, *call("async"))


def resident() -> int:
    """KiB of memory that this process uses."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


async def measure() -> None:
    """Start tasks, and look at the memory when all of them wait."""
    before, running = resident(), []
    for count in COUNTS:
        started = len(running)
        running += [asyncio.create_task(trace_one(n)) for n in range(count - started)]
        for _ in range(3):
            await asyncio.sleep(0)
        now = resident()
        print(f"{count:>6} tasks wait: {(now - before) / count:.1f} KiB each")
    gate.set()
    await asyncio.gather(*running)


def main() -> None:
    """On uvloop, as in a worker."""
    setup_worker_optimizations(app)
    prepare(app.tasks["async"])
    build_trace(app, app.tasks["async"])
    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(measure())


if __name__ == "__main__":
    main()
