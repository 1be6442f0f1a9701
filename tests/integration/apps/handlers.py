"""Handlers of tasks, and receivers of the signals around them, plain and async."""

import asyncio
import contextlib
import contextvars
import os
import threading
import time

from celery import Task, signals
from celery.exceptions import Retry

from .base import configure, make_app
from .recording import record

app = make_app("handlers")
configure(app, "HANDLERS_CONF")

HANDLERS = ("before_start", "on_success", "on_failure", "on_retry", "after_return")
SIGNALS = ("task_prerun", "task_postrun", "task_success", "task_failure", "task_retry")

#: Opened by the task `open_gate`, on the loop of the process.
gate = threading.Event()

variable = contextvars.ContextVar("variable", default="nothing")


def wait_for_gate():
    """Block the thread, as I/O would; one bytecode after the other, so that it can be ended."""
    while not gate.is_set():
        time.sleep(0.01)


async def await_gate():
    while not gate.is_set():
        await asyncio.sleep(0.01)


def step(place, task_id, how):
    """What a handler or receiver of *how* does, plain."""
    loop = asyncio._get_running_loop() is not None
    record(place, id=task_id, thread=threading.current_thread().name, on_loop=loop)
    if how == "blocks":
        wait_for_gate()
    elif how == "blocks in C":
        time.sleep(3600)
    elif how == "raises":
        raise ValueError(f"{place} fails")
    record(f"{place} ends", id=task_id)


async def async_step(place, task_id, how):
    """The same, async."""
    record(place, id=task_id)
    try:
        if how == "waits":
            await await_gate()
        elif how == "refuses":
            while not gate.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.01)
        elif how == "raises":
            raise ValueError(f"{place} fails")
        elif how == "cancelled":
            raise asyncio.CancelledError
        await asyncio.sleep(0)
    finally:
        record(f"{place} ends", id=task_id)


class Plain(Task):
    """Handlers that do what the task's arguments say: *where* and *how*."""

    abstract = True

    def _step(self, place, task_id, args):
        if len(args) == 3 and args[0] == place:
            step(place, task_id, args[1])

    def before_start(self, task_id, args, kwargs):
        self._step("before_start", task_id, args)

    def on_success(self, retval, task_id, args, kwargs):
        self._step("on_success", task_id, args)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        self._step("on_failure", task_id, args)

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        self._step("on_retry", task_id, args)

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        self._step("after_return", task_id, args)


class Async(Task):
    """The same, async."""

    abstract = True

    async def _step(self, place, task_id, args):
        if len(args) == 3 and args[0] == place:
            await async_step(place, task_id, args[1])

    async def before_start(self, task_id, args, kwargs):
        await self._step("before_start", task_id, args)

    async def on_success(self, retval, task_id, args, kwargs):
        await self._step("on_success", task_id, args)

    async def on_failure(self, exc, task_id, args, kwargs, einfo):
        await self._step("on_failure", task_id, args)

    async def on_retry(self, exc, task_id, args, kwargs, einfo):
        await self._step("on_retry", task_id, args)

    async def after_return(self, status, retval, task_id, args, kwargs, einfo):
        await self._step("after_return", task_id, args)


def end(self, outcome):
    if outcome == "retries" and not self.request.retries:
        raise self.retry(countdown=0)
    if outcome == "fails":
        raise ValueError("the body fails")
    return "done"


def connect(name, flavour):
    """Receivers of the signal *name* for the tasks of one flavour."""
    signal = getattr(signals, name)

    def place(kwargs):
        task_id = kwargs.get("task_id") or kwargs["sender"].request.id
        args = kwargs["sender"].request.args
        mine = len(args) == 3 and args[0] == f"{flavour} {name}"
        return (f"{flavour} {name}", task_id, args[1]) if mine else None

    def plain(**kwargs):
        found = place(kwargs)
        if found is not None:
            step(*found)

    async def coroutine(**kwargs):
        found = place(kwargs)
        if found is not None:
            await async_step(*found)

    receiver = plain if flavour == "plain" else coroutine
    signal.connect(receiver, weak=False, dispatch_uid=f"{flavour} {name}")


for _name in SIGNALS:
    for _flavour in ("plain", "async"):
        connect(_name, _flavour)


# Tasks: (where, how, outcome).


@app.task(bind=True, base=Plain)
async def async_plain(self, where, how, outcome):
    record("started", id=self.request.id)
    await asyncio.sleep(0)
    return end(self, outcome)


@app.task(bind=True, base=Async)
async def async_async(self, where, how, outcome):
    record("started", id=self.request.id)
    await asyncio.sleep(0)
    return end(self, outcome)


@app.task(bind=True, base=Plain)
def def_plain(self, where, how, outcome):
    record("started", id=self.request.id)
    return end(self, outcome)


@app.task(bind=True, base=Async)
def def_async(self, where, how, outcome):
    record("started", id=self.request.id)
    return end(self, outcome)


@app.task(base=Plain)
async def over_async_plain(where, how, outcome):
    await asyncio.sleep(3600)


@app.task(base=Async)
async def over_async_async(where, how, outcome):
    await asyncio.sleep(3600)


@app.task(base=Plain)
def over_def_plain(where, how, outcome):
    while True:
        time.sleep(0.01)


@app.task(base=Async)
def over_def_async(where, how, outcome):
    while True:
        time.sleep(0.01)


@app.task
async def open_gate(value=True):
    gate.set() if value else gate.clear()
    return os.getpid()


@app.task(bind=True)
async def neighbour(self):
    """Runs until the gate opens."""
    record("started", id=self.request.id)
    await await_gate()
    return os.getpid()


# One context for all of a task.


def is_traced(sender):
    return sender.name.startswith(f"{__name__}.traced")


class Tokens:
    """As OpenTelemetry: attached before the task, detached after it."""

    def __init__(self, kind):
        self.kind = kind
        self.variable = contextvars.ContextVar(kind, default="none")
        self.tokens = {}

    def attach(self, task_id):
        self.tokens[task_id] = self.variable.set(f"{self.kind} of {task_id}")
        variable.set(f"prerun of {self.kind}")

    def detach(self, task_id):
        seen = variable.get()
        with contextlib.suppress(ValueError):
            self.variable.reset(self.tokens.pop(task_id))
            record("detached", id=task_id, kind=self.kind, seen=seen, left=self.variable.get())


plain_tokens, async_tokens = Tokens("plain"), Tokens("async")


@signals.task_prerun.connect
def attach_plain(sender, task_id, **kwargs):
    if is_traced(sender):
        plain_tokens.attach(task_id)


@signals.task_prerun.connect
async def attach_async(sender, task_id, **kwargs):
    if is_traced(sender):
        record("plain first", id=task_id, seen=variable.get())
        await asyncio.sleep(0)
        async_tokens.attach(task_id)


@signals.task_postrun.connect
def detach_plain(sender, task_id, **kwargs):
    if is_traced(sender):
        plain_tokens.detach(task_id)


@signals.task_postrun.connect
async def detach_async(sender, task_id, **kwargs):
    if is_traced(sender):
        await asyncio.sleep(0)
        async_tokens.detach(task_id)


def look():
    seen = [plain_tokens.variable.get(), async_tokens.variable.get(), variable.get()]
    variable.set("the body")
    return seen


@app.task
async def traced_async():
    await asyncio.sleep(0.01)
    return look()


@app.task
def traced_def():
    return look()


# Receivers of all kinds.


class Counter:
    """A receiver that is a bound method, held weakly, and one that is an object."""

    def plain(self, sender, task_id, **kwargs):
        record("bound method", id=task_id)

    async def coroutine(self, sender, task_id, **kwargs):
        await asyncio.sleep(0)
        record("async bound method", id=task_id)

    async def __call__(self, sender, task_id, **kwargs):
        await asyncio.sleep(0)
        record("async object", id=task_id)


counter = Counter()


@app.task(bind=True)
async def kinds(self):
    """Connects some, for itself only, and one that is gone again."""
    sender = self.app.tasks[self.name]
    signals.task_postrun.connect(counter.plain, sender=sender)
    signals.task_postrun.connect(counter.coroutine, sender=sender)
    signals.task_postrun.connect(counter, sender=sender, weak=False)
    signals.task_postrun.connect(Counter().plain, sender=sender)
    signals.task_postrun.connect(fails, sender=sender, dispatch_uid="fails")
    signals.task_postrun.connect(fails, sender=sender, dispatch_uid="fails")
    signals.task_postrun.connect(after, sender=sender)
    signals.task_postrun.connect(at_second_try, sender=sender, retry=True)
    signals.task_postrun.connect(other, sender=self.app.tasks[f"{__name__}.neighbour"])
    return "done"


async def fails(sender, task_id, **kwargs):
    record("fails", id=task_id)
    raise ValueError("a receiver fails")


def after(sender, task_id, **kwargs):
    record("after", id=task_id)


tries = []


def at_second_try(sender, task_id, **kwargs):
    tries.append(task_id)
    if len(tries) < 2:
        raise ConnectionError("not yet")
    record("second try", id=task_id)


def other(sender, task_id, **kwargs):
    record("other", id=task_id)


# What handlers may do.


class Publishing(Task):
    """Its handlers publish, wait and retry with Celery's blocking calls."""

    abstract = True

    def on_success(self, retval, task_id, args, kwargs):
        app.send_task(f"{__name__}.noted", ["on_success", task_id])
        record("current", id=task_id, current=[self.request.id, app.current_task.name])

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        with contextlib.suppress(Retry):
            self.retry(exc=exc, countdown=0)


@app.task
async def noted(what, task_id):
    record("noted", id=task_id, from_=what)


@app.task(bind=True, base=Publishing)
async def publishing(self, fail):
    if fail:
        raise ValueError("no")
