"""Tasks that are told of their soft limit by a hook."""

import asyncio
import contextvars
import os
import threading
import time

import celery

from celery_asyncpool import AsyncTask

from .base import configure, make_app
from .recording import record

app = make_app("softhooks")
configure(app, "SOFTHOOKS_CONF")

LIMIT = 0.3
FOREVER = 600

progress = contextvars.ContextVar("progress", default=None)


def told(task):
    """Say so to the body."""
    record(
        "hook",
        id=task.request.id,
        args=list(task.request.args),
        progress=progress.get(),
        current=celery.current_task.request.id,
        loop_runs=asyncio._get_running_loop() is not None,
        main=threading.current_thread() is threading.main_thread(),
    )
    task.request.is_late = True


async def told_async(task):
    await asyncio.sleep(0.01)
    told(task)


class CallableHook:
    def __call__(self, task):
        told(task)


class Told(celery.Task):
    """Tells tasks of whatever soft limit they are given."""

    abstract = True

    def on_soft_limit(self):
        told(self)


async def until_told(self):
    record("started", id=self.request.id)
    progress.set(f"as far as {self.request.id}")
    while not self.request.get("is_late"):
        await asyncio.sleep(0.01)
    return "told"


def add(name, body, **options):
    options.setdefault("bind", True)
    return app.task(body, name=f"apps.softhooks.{name}", **options)


add("plain", until_told, soft_time_limit=LIMIT, on_soft_limit=told)
add("asynchronous", until_told, soft_time_limit=LIMIT, on_soft_limit=told_async)
add("callable", until_told, soft_time_limit=LIMIT, on_soft_limit=CallableHook())
add("of_base", until_told, base=Told)
add("of_async_task", until_told, base=AsyncTask, soft_time_limit=LIMIT, on_soft_limit=told)


@app.task(bind=True, soft_time_limit=LIMIT, on_soft_limit=told)
def in_thread(self):
    record("started", id=self.request.id)
    progress.set(f"as far as {self.request.id}")
    while not self.request.get("is_late"):
        time.sleep(0.01)
    return "told"


class ClassBased(celery.Task):
    name = "apps.softhooks.class_based"
    soft_time_limit = LIMIT

    async def run(self):
        return await until_told(self)

    async def on_soft_limit(self):
        await told_async(self)


app.register_task(ClassBased())


def failing(task):
    task.request.is_late = True
    raise ValueError(f"no, {task.request.id}")


def exiting(task):
    task.request.is_late = True
    raise SystemExit(3)


async def retrying(task):
    task.request.is_late = True
    raise task.retry(countdown=0)


add("hook_fails", until_told, soft_time_limit=LIMIT, on_soft_limit=failing)
add("hook_exits", until_told, soft_time_limit=LIMIT, on_soft_limit=exiting)
add("hook_retries", until_told, soft_time_limit=LIMIT, on_soft_limit=retrying)


async def slow(task):
    task_id = task.request.id
    task.request.is_late = True
    record("hook", id=task_id)
    try:
        await asyncio.sleep(FOREVER)
    finally:
        await asyncio.sleep(0.01)
        record("hook cleaned up", id=task_id, same=task.request.id)


add("hook_is_slow", until_told, soft_time_limit=LIMIT, on_soft_limit=slow)


@app.task(bind=True, soft_time_limit=LIMIT, on_soft_limit=slow)
def hook_is_slow_in_thread(self):
    record("started", id=self.request.id)
    while not self.request.get("is_late"):
        time.sleep(0.01)
    return "told"


@app.task(bind=True, soft_time_limit=LIMIT, on_soft_limit=slow)
async def goes_on(self):
    """Do not listen to the hook."""
    record("started", id=self.request.id)
    try:
        await asyncio.sleep(FOREVER)
    finally:
        record("body ended", id=self.request.id)


def blocking(task):
    while not os.path.exists(task.request.args[0]):
        time.sleep(0.02)  # the blocking line
    task.request.is_late = True


@app.task(bind=True, soft_time_limit=LIMIT, on_soft_limit=blocking)
async def hook_blocks(self, gate):
    return await until_told(self)


@app.task(bind=True, soft_time_limit=FOREVER, on_soft_limit=told)
async def in_time(self):
    return "in time"


@app.task
async def left_behind():
    await asyncio.sleep(0)
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    return [repr(task) for task in tasks]
