"""Bodies for tracing tools: some use one themselves, some are looked at from outside."""

import asyncio
import cProfile
import sys
import threading
import time

from celery.exceptions import SoftTimeLimitExceeded

from .base import configure, make_app
from .recording import record

app = make_app("traced")
configure(app, "TRACED_CONF")


def work():
    return sum(int(str(n)) for n in range(50))


def with_profile():
    profile = cProfile.Profile()
    assert profile.runcall(work) == 1225
    return len(profile.getstats()) > 1


def with_trace():
    seen = []

    def trace(frame, event, arg):
        seen.append(event)
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return "line" in seen


def with_profile_function():
    seen = []
    sys.setprofile(lambda frame, event, arg: seen.append(event))
    try:
        work()
    finally:
        sys.setprofile(None)
    return "call" in seen


TOOLS = {tool.__name__: tool for tool in (with_profile, with_trace, with_profile_function)}


@app.task
async def async_tool(name):
    await asyncio.sleep(0)
    return TOOLS[name]()


@app.task
def def_tool(name):
    return TOOLS[name]()


@app.task
def plain():
    return threading.get_ident()


@app.task(bind=True, soft_time_limit=0.2)
def deaf(self, seconds):
    """In a call into C when its soft limit comes: hears of it afterwards."""
    record("started", id=self.request.id)
    try:
        time.sleep(seconds)
        for _ in range(1000):
            pass
    except SoftTimeLimitExceeded:
        return "soft limit"
    return "no limit"


@app.task(bind=True)
async def covered_async(self, value):
    await asyncio.sleep(0)
    value += 1
    await asyncio.sleep(0.05)
    return value + await covered_child(value)


async def covered_child(value):
    await asyncio.sleep(0.01)
    return value


@app.task
def covered_def(value):
    value += 1
    return value


@app.task
def never_called(value):
    return value
