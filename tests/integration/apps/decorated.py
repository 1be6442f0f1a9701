"""Async tasks under the decorators of well-known libraries, each with its own idea of async."""

import asyncio
import threading

import celery
import decorator
import prometheus_client
import tenacity
import wrapt
from async_lru import alru_cache
from opentelemetry import trace

from .base import make_app
from .recording import record

app = make_app("decorated")

SECONDS = prometheus_client.Summary("task_seconds", "Seconds of a task.")


async def body(x, seconds=0.0):
    record("started", id=celery.current_task.request.id)
    await asyncio.sleep(seconds)
    in_main = threading.current_thread() is threading.main_thread()
    return [x + 1, in_main, celery.current_task.request.id]


def task(name):
    return app.task(name=f"apps.decorated.{name}")


_tries = []


@task("tenacity")
@tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_none())
async def retried(x, seconds=0.0):
    _tries.append(x)
    if len(_tries) % 3:
        raise ValueError("again")
    return await body(x, seconds)


@wrapt.decorator
def passes(wrapped, instance, args, kwargs):
    return wrapped(*args, **kwargs)


@wrapt.decorator
def runs(wrapped, instance, args, kwargs):
    return asyncio.run(wrapped(*args, **kwargs))


@wrapt.decorator
async def awaits(wrapped, instance, args, kwargs):
    return await wrapped(*args, **kwargs)


task("wrapt_passes")(passes(body))
task("wrapt_runs")(runs(body))
task("wrapt_awaits")(awaits(body))


@decorator.decorator
def plainly(function, *args, **kwargs):
    return function(*args, **kwargs)


@decorator.decorator
def with_a_loop(function, *args, **kwargs):
    return asyncio.run(function(*args, **kwargs))


@decorator.decorator
async def in_the_loop(function, *args, **kwargs):
    return await function(*args, **kwargs)


task("decorator_passes")(plainly(body))
task("decorator_runs")(with_a_loop(body))
task("decorator_awaits")(in_the_loop(body))
task("prometheus")(SECONDS.time()(body))
task("opentelemetry")(trace.get_tracer(__name__).start_as_current_span("span")(body))


@alru_cache
async def cached(x):
    await asyncio.sleep(0)
    return x + 1


@task("async_lru")
async def uses_cache(x, seconds=0.0):
    await body(x, seconds)
    in_main = threading.current_thread() is threading.main_thread()
    return [await cached(x), in_main, celery.current_task.request.id]
