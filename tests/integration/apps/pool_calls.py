"""A bootstep that gives functions to the pool, as extensions do."""

import asyncio
import os
import threading
import time

from billiard.einfo import ExceptionWithTraceback
from celery import bootsteps, current_app
from celery.signals import worker_ready

from .base import make_app
from .recording import record

app = make_app("pool_calls")
app.conf.asyncpool_cancel_grace = 2.0


class Unpicklable:
    """A value that cannot leave its process."""

    def __init__(self):
        self.lock = threading.Lock()

    def __repr__(self):
        return "<Unpicklable>"


class Unreadable:
    """A value that leaves its process and cannot be read."""

    def __reduce__(self):
        return int, ("no number",)


class Falsy(Exception):
    """A value, not an outcome."""


def value(what):
    return VALUES[what]()


VALUES = {
    "number": lambda: 3,
    "none": lambda: None,
    "text": lambda: "",
    "tuple": lambda: (True, "x", 1.5),
    "list": lambda: [1, [2], {"a": 3}],
    "exception": lambda: Falsy("a value"),
    "bytes": lambda: b"x" * 300_000,
    "unpicklable": Unpicklable,
    "unreadable": Unreadable,
    "generator": lambda: (n for n in range(3)),
}


def fails(text):
    raise LookupError(text)


def exits():
    raise SystemExit(3)


def crashes():
    os._exit(7)


def pauses(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


async def on_loop(number):
    await asyncio.sleep(0.01)
    assert threading.current_thread() is threading.main_thread()
    return number * 2


async def waits(seconds):
    await asyncio.sleep(seconds)


def gives_coroutine(number):
    return on_loop(number)


def runs_loop(number):
    async def double():
        return number * 2

    return asyncio.run(double())


@app.task
async def add(x, y):
    return x + y


def calls_a_task(x, y):
    return asyncio.run(current_app.tasks["apps.pool_calls.add"](x, y))


def runs_task(task, x, y):
    return task(x, y)


def error_of(einfo):
    """The exception, which has a wrapper where the main process has made it."""
    exc = einfo.exception
    return repr(exc.exc if isinstance(exc, ExceptionWithTraceback) else exc)


class Caller(bootsteps.StartStopStep):
    """Calls when the worker is ready, and records what it is told."""

    requires = {"celery.worker.consumer.tasks:Tasks"}

    def start(self, consumer):
        worker_ready.connect(lambda **kwargs: self.call_all(consumer.pool), weak=False)

    def call_all(self, pool):
        self.call(pool, "len", len, ("abc",))
        for what in VALUES:
            self.call(pool, what, value, (what,))
        self.call(pool, "kwargs", dict, (), {"task": 1, "function": 2, "job": 3, "threads": 4})
        self.call(pool, "fails", fails, ("why",))
        self.call(pool, "exits", exits)
        self.call(pool, "on_loop", on_loop, (4,))
        self.call(pool, "gives_coroutine", gives_coroutine, (4,))
        self.call(pool, "runs_loop", runs_loop, (4,))
        self.call(pool, "calls_a_task", calls_a_task, (1, 2))
        self.call(pool, "runs_task", runs_task, (app.tasks["apps.pool_calls.add"], 1, 2))
        self.call(pool, "soft", waits, (40,), soft_timeout=0.3)
        self.call(pool, "hard", waits, (40,), timeout=0.3)
        self.call(pool, "soft def", pauses, (40,), soft_timeout=0.3)
        self.call(pool, "hard def", pauses, (40,), timeout=0.3)
        self.call(pool, "junk limits", len, ("abc",), soft_timeout=-1, timeout="soon")
        self.call(pool, "cannot be sent", len, (threading.Lock(),))
        self.call(pool, "lambda", lambda: 3)
        pool.apply_async(fails, ("nobody asks",))

    def call(self, pool, what, function, args=(), kwargs=None, **limits):
        pool.apply_async(
            function,
            args,
            kwargs,
            accept_callback=lambda pid, when: record("accepted", of=what),
            callback=lambda value: record("value", of=what, value=repr(value)[:60]),
            error_callback=lambda einfo: record("error", of=what, error=error_of(einfo)),
            timeout_callback=lambda soft, timeout: record("limit", of=what, soft=soft),
            **limits,
        )


app.steps["consumer"].add(Caller)
