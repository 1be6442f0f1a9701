"""One task for each thing that users of Celery do, as `async def` and as `def`."""

import asyncio
import contextvars
import os
import signal
import threading
import time

import celery
from celery import signals
from celery.exceptions import Ignore, Reject

from .base import make_app
from .recording import record

app = make_app("features")


class Unpicklable(Exception):
    """Holds what no pickle can hold."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class PicklesButDoesNotUnpickle(Exception):
    """A common mistake: __init__ takes other arguments than those kept in args."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


# Signals.


@signals.task_prerun.connect
def on_prerun(sender, task_id, task, **kwargs):
    record("prerun", id=task_id, request=task.request.id, current=celery.current_task.name)


@signals.task_postrun.connect
def on_postrun(sender, task_id, task, state, **kwargs):
    record("postrun", id=task_id, request=task.request.id, state=state)


@signals.task_success.connect
def on_success(sender, result, **kwargs):
    record("success", id=sender.request.id)


@signals.task_failure.connect
def on_failure(sender, task_id, exception, **kwargs):
    record("failure", id=task_id, type=type(exception).__name__)


@signals.task_retry.connect
def on_retry(sender, request, reason, **kwargs):
    record("retry", id=request.id)


# Plain calls.


@app.task
async def async_add(x, y):
    await asyncio.sleep(0.01)
    return x + y


@app.task
def def_add(x, y):
    return x + y


@app.task(bind=True)
async def async_bound(self, value):
    await asyncio.sleep(0)
    return [self.request.id, self.name, value]


@app.task(bind=True)
def def_bound(self, value):
    return [self.request.id, self.name, value]


@app.task
async def async_total(values):
    return sum(values)


@app.task
def def_total(values):
    return sum(values)


@app.task(ignore_result=True)
async def async_quiet():
    record("quiet ran")


@app.task(ignore_result=True)
def def_quiet():
    record("quiet ran")


@app.task(track_started=True)
async def async_tracked(path):
    await _exists(path)
    return "done"


@app.task(track_started=True)
def def_tracked(path):
    while not os.path.exists(path):
        time.sleep(0.01)
    return "done"


async def _exists(path):
    while not os.path.exists(path):
        await asyncio.sleep(0.01)


@app.task(acks_late=True)
async def async_late(value):
    await asyncio.sleep(0)
    return value


@app.task(acks_late=True)
def def_late(value):
    return value


@app.task(rate_limit="5/s")
async def async_rated():
    return time.monotonic()


@app.task(rate_limit="5/s")
def def_rated():
    return time.monotonic()


@app.task
async def async_hold(path, name):
    record("hold", name=name)
    await _exists(path)
    return name


@app.task
def def_hold(path, name):
    record("hold", name=name)
    while not os.path.exists(path):
        time.sleep(0.01)
    return name


# Retries.


@app.task(bind=True, max_retries=3)
async def async_retry(self, times):
    await asyncio.sleep(0)
    record("retry ran", retries=self.request.retries)
    if self.request.retries < times:
        raise self.retry(countdown=0.05)
    return self.request.retries


@app.task(bind=True, max_retries=3)
def def_retry(self, times):
    record("retry ran", retries=self.request.retries)
    if self.request.retries < times:
        raise self.retry(countdown=0.05)
    return self.request.retries


@app.task(bind=True, ignore_result=True)
async def async_quiet_retry(self):
    if not self.request.retries:
        raise self.retry(countdown=0)


@app.task(bind=True, ignore_result=True)
def def_quiet_retry(self):
    if not self.request.retries:
        raise self.retry(countdown=0)


@app.task(
    bind=True, autoretry_for=(KeyError,), retry_backoff=1, retry_backoff_max=1, max_retries=2
)
async def async_autoretry(self, times):
    await asyncio.sleep(0)
    if self.request.retries < times:
        raise KeyError("again")
    return self.request.retries


@app.task(
    bind=True, autoretry_for=(KeyError,), retry_backoff=1, retry_backoff_max=1, max_retries=2
)
def def_autoretry(self, times):
    if self.request.retries < times:
        raise KeyError("again")
    return self.request.retries


# Ends.


@app.task
async def async_fail(text):
    await asyncio.sleep(0)
    raise ValueError(text)  # the user's line


@app.task
def def_fail(text):
    raise ValueError(text)  # the user's line


@app.task
async def async_ignore():
    raise Ignore


@app.task
def def_ignore():
    raise Ignore


@app.task(acks_late=True)
async def async_reject():
    raise Reject("no", requeue=False)


@app.task(acks_late=True)
def def_reject():
    raise Reject("no", requeue=False)


@app.task
async def async_big(size):
    return "x" * size


@app.task
def def_big(size):
    return "x" * size


@app.task
async def async_unserialisable():
    return object()


@app.task
def def_unserialisable():
    return object()


def _bad_exception(kind):
    if kind == "unpicklable":
        raise Unpicklable("holds a lock")
    if kind == "one way":
        raise PicklesButDoesNotUnpickle("one", "way")
    if kind == "exit":
        raise SystemExit(3)
    if kind == "interrupt":
        raise KeyboardInterrupt
    raise AssertionError(kind)


@app.task
async def async_bad_exception(kind):
    await asyncio.sleep(0)
    _bad_exception(kind)


@app.task
def def_bad_exception(kind):
    _bad_exception(kind)


@app.task
async def async_generator():
    yield 1


@app.task
def def_generator():
    yield 1


@app.task
async def async_cancels_itself():
    asyncio.current_task().cancel()
    await asyncio.sleep(1)


@app.task
async def async_kills_loop(how):
    loop = asyncio.get_running_loop()
    if how == "stop":
        loop.stop()
    else:
        keep = loop.create_task(_exit_later())
        assert not keep.done()
    await asyncio.sleep(0.2)
    return "lived on"


async def _exit_later():
    raise SystemExit(5)


# Links.


@app.task
async def async_errback(request, exc, traceback):
    await asyncio.sleep(0)
    record("errback", id=request.id, type=type(exc).__name__)


@app.task
def def_errback(request, exc, traceback):
    record("errback", id=request.id, type=type(exc).__name__)


@app.task
async def async_linked(value):
    record("linked", value=value)


@app.task
def def_linked(value):
    record("linked", value=value)


# Task classes.


class Handlers(celery.Task):
    """Records its plain handlers."""

    abstract = True

    def before_start(self, task_id, args, kwargs):
        record("before_start", id=task_id)

    def on_success(self, retval, task_id, args, kwargs):
        record("on_success", id=task_id)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        record("on_failure", id=task_id)

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        record("after_return", id=task_id, status=status)

    def __call__(self, *args, **kwargs):
        value = super().__call__(*args, **kwargs)
        record("called", id=self.request.id, type=type(value).__name__)
        return value


class AsyncHandlers(celery.Task):
    """Records its handlers, all of which await."""

    abstract = True

    async def before_start(self, task_id, args, kwargs):
        await asyncio.sleep(0)
        record("before_start", id=task_id)

    async def on_success(self, retval, task_id, args, kwargs):
        await asyncio.sleep(0)
        record("on_success", id=task_id)

    async def on_failure(self, exc, task_id, args, kwargs, einfo):
        await asyncio.sleep(0)
        record("on_failure", id=task_id)

    async def after_return(self, status, retval, task_id, args, kwargs, einfo):
        await asyncio.sleep(0)
        record("after_return", id=task_id, status=status)


class AsyncCall(celery.Task):
    """Its __call__ awaits."""

    abstract = True

    async def __call__(self, *args, **kwargs):
        value = await super().__call__(*args, **kwargs)
        record("called", id=self.request.id, type=type(value).__name__)
        return value


@app.task(base=Handlers)
async def async_handled(fail):
    await asyncio.sleep(0)
    if fail:
        raise ValueError("handled")
    return 1


@app.task(base=Handlers)
def def_handled(fail):
    if fail:
        raise ValueError("handled")
    return 1


@app.task(base=AsyncHandlers)
async def async_handled_async(fail):
    if fail:
        raise ValueError("handled")
    return 1


@app.task(base=AsyncHandlers)
def def_handled_async(fail):
    if fail:
        raise ValueError("handled")
    return 1


@app.task(base=AsyncCall)
async def async_called():
    await asyncio.sleep(0)
    return 1


def hides(function):
    """A decorator that forgot functools.wraps."""

    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    wrapper.__name__ = function.__name__
    return wrapper


@app.task(name="async_hidden")
@hides
async def async_hidden(seconds):
    await asyncio.sleep(seconds)
    return threading.get_ident()


@app.task
async def loop_thread():
    return [threading.get_ident(), threading.current_thread() is threading.main_thread()]


# Identity.


@app.task(bind=True)
async def identity(self, seconds):
    """Return where `self.request` or `current_task` were not this job's."""
    wrong = []

    def check(where):
        if self.request.id != my_id or celery.current_task.request.id != my_id:
            wrong.append(where)

    async def child(number):
        for step in range(3):
            check(f"child {number} {step}")
            await asyncio.sleep(seconds / 3)

    my_id = self.request.id
    check("start")
    await asyncio.sleep(seconds)
    check("after an await")
    async with asyncio.TaskGroup() as group:
        group.create_task(child(1))
        group.create_task(child(2))
    await asyncio.to_thread(check, "thread")
    check("end")
    return wrong


@app.task(bind=True)
async def leftovers(self):
    """Return what is known of a current task outside of all jobs, and how many are kept."""
    loop = asyncio.get_running_loop()
    seen = loop.create_future()

    def look():
        seen.set_result(celery.current_task.name if celery.current_task else None)

    loop.call_soon(look, context=contextvars.Context())
    outside = await seen
    kept = len(identity.request_stack._local.__storage__)
    return [outside, kept]


@app.task
async def kill_my_process():
    os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(60)
