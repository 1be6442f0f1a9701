"""Home-made tools that find the running trace by greenlet, thread, asyncio task or context."""

import asyncio
import threading
from contextvars import ContextVar

import greenlet
from celery.app import trace

from .base import make_app

app = make_app("keyed")

#: Kept, so that no two of them have the same id.
alive = []


def current_task_id():
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return None
    alive.append(task)
    return id(task)


def current_greenlet_id():
    current = greenlet.getcurrent()
    alive.append(current)
    return id(current)


KEYS = {
    "greenlet": current_greenlet_id,
    "thread": threading.get_ident,
    "asyncio": current_task_id,
}

#: What each tool keeps, by its key: the trace, here only the task's id.
traces = {name: {} for name in KEYS}
in_context = ContextVar("trace")


def find():
    """What each tool finds from here."""
    found = {name: traces[name].get(key()) for name, key in KEYS.items()}
    return {**found, "context": in_context.get(None)}


def traced(task, function):
    """Begin a trace, call *function*, end it; as tools do that wrap what the tracer calls."""

    def run(*args, **kwargs):
        keys = {name: key() for name, key in KEYS.items()}
        for name, key in keys.items():
            traces[name][key] = task.request.id
        token = in_context.set(task.request.id)
        try:
            return function(*args, **kwargs)
        finally:
            in_context.reset(token)
            for name, key in keys.items():
                if name != "thread":  # another one's may have begun in this thread
                    del traces[name][key]

    return run


build_tracer = trace.build_tracer


def build_traced(name, task, *args, **kwargs):
    task.run = traced(task, task.run)
    return build_tracer(name, task, *args, **kwargs)


trace.build_tracer = build_traced


@app.task
async def async_body():
    """What is found before, between and after the body's awaits, and in a child task."""
    found = [find()]
    for _ in range(3):
        await asyncio.sleep(0.02)
        found.append(find())
    try:
        await asyncio.wait_for(asyncio.Event().wait(), 0.01)
    except TimeoutError:
        found.append(find())
    child = (await asyncio.gather(in_child()))[0]
    return found, child


async def in_child():
    await asyncio.sleep(0)
    return find()


@app.task
def def_body():
    return [find()], find()
