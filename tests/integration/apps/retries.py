"""Tasks that ask for retries in all ways, from all places, with what records each step."""

import asyncio
import contextlib
import contextvars
import os
import pathlib
import signal
import time

import anyio
import celery
from celery import signals
from celery.exceptions import Ignore, Reject, Retry

from celery_asyncpool import AsyncTask

from .base import configure, make_app
from .recording import record

app = make_app("retries")
app.conf.task_create_missing_queues = False
configure(app, "RETRIES_CONF")

place = contextvars.ContextVar("place", default="nowhere")


@signals.task_prerun.connect
def on_prerun(task_id, task, **kwargs):
    record("prerun", id=task_id, retries=task.request.retries)


@signals.task_postrun.connect
def on_postrun(task_id, task, state, **kwargs):
    record("postrun", id=task_id, state=state)


@signals.task_retry.connect
def on_retry(request, **kwargs):
    record("retry", id=request.id)


@signals.task_failure.connect
def on_failure(task_id, exception, sender, **kwargs):
    record("failure", id=task_id, type=type(exception).__name__, request=sender.request.id)


@signals.task_success.connect
def on_success(sender, **kwargs):
    record("success", id=sender.request.id)


@signals.before_task_publish.connect
def on_before_publish(headers, **kwargs):
    current = celery.current_task.request.id if celery.current_task else None
    record("before publish", id=headers["id"], current=current, place=place.get())


@signals.after_task_publish.connect
def on_after_publish(headers, **kwargs):
    record("after publish", id=headers["id"])


# Several retries in one attempt.


async def child(task, reason="retry", after=0.0):
    await asyncio.sleep(after)
    if reason == "retry":
        raise task.retry(countdown=0)
    if reason == "aretry":
        raise await task.aretry(countdown=0)
    raise {"ignore": Ignore(), "reject": Reject("no"), "error": ValueError("no")}[reason]


async def in_task_group(task, reasons):
    async with asyncio.TaskGroup() as group:
        for reason in reasons:
            group.create_task(child(task, reason))


async def in_nested_groups(task, reasons):
    async with asyncio.TaskGroup() as group:
        group.create_task(in_task_group(task, reasons))
        group.create_task(in_task_group(task, reasons))


async def in_anyio_group(task, reasons):
    async with anyio.create_task_group() as group:
        for reason in reasons:
            group.start_soon(child, task, reason)


async def in_gather(task, reasons):
    await asyncio.gather(*(child(task, reason) for reason in reasons))


async def in_late_gather(task, reasons):
    await asyncio.gather(*(child(task, r, after=n * 0.005) for n, r in enumerate(reasons)))


async def in_gather_with_exceptions(task, reasons):
    await asyncio.gather(*(child(task, r) for r in reasons), return_exceptions=True)


async def in_wait(task, reasons):
    done, _ = await asyncio.wait([asyncio.create_task(child(task, r)) for r in reasons])
    assert all(isinstance(each.exception(), Retry) for each in done)


async def in_threads(task, reasons):
    await asyncio.gather(*(asyncio.to_thread(task.retry, countdown=0) for _ in reasons))


async def in_group_of_block_and_child(task, reasons):
    async with asyncio.TaskGroup() as group:
        group.create_task(child(task, reasons[0]))
        task.retry(countdown=0)


WAYS = {name: value for name, value in globals().items() if name.startswith("in_")}


@app.task(base=AsyncTask, bind=True, acks_late=True)
async def asks(self, way, *reasons):
    """Ask for a retry in each of several children, in the first attempt."""
    if self.request.retries == 0:
        await WAYS[way](self, reasons)
        return "went on"
    return "again"


@app.task(bind=True, acks_late=True)
def def_asks(self, way, *reasons):
    """The same on a loop of its own, in a `def` body."""
    if self.request.retries == 0:
        asyncio.run(WAYS[way](self, reasons))
        return "went on"
    return "again"


@app.task(base=AsyncTask, bind=True, max_retries=0)
async def exceeds(self):
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(child(self))


@app.task(bind=True)
async def asks_for_two(self, mark=None):
    """One child raises its retry, the other one, later, does not."""
    if self.request.retries:
        return mark
    async with asyncio.TaskGroup() as group:
        group.create_task(_ask(self, mark="raised", throw=True))
        group.create_task(_ask(self, mark="returned", throw=False))


async def _ask(task, mark, throw):
    task.retry(kwargs={"mark": mark}, countdown=0, throw=throw)


@app.task(bind=True, autoretry_for=(KeyError,), default_retry_delay=0)
async def autoretry_in_group(self, what):
    if self.request.retries:
        return "again"
    async with asyncio.TaskGroup() as group:
        group.create_task(child(self, "retry") if what == "retry" else _raise(KeyError("no")))
    return "never"


async def _raise(exc):
    raise exc


# Retries that are not raised, or come to nothing.


@app.task(base=AsyncTask, bind=True)
async def swallows(self, how):
    if self.request.retries:
        record("again", id=self.request.id, how=how)
        return "again"
    if how == "caught":
        with contextlib.suppress(Retry):
            self.retry(countdown=0)
    elif how == "throw=False":
        await self.aretry(countdown=0, throw=False)
    elif how == "twice":
        self.retry(args=["first"], countdown=0, throw=False)
        self.retry(args=["second"], countdown=0, throw=False)
    elif how == "throw=False, then an error":
        self.retry(countdown=0, throw=False)
        raise ValueError("no")
    elif how == "throw=False, then Ignore":
        self.retry(countdown=0, throw=False)
        raise Ignore
    elif how == "throw=False, then Reject":
        self.retry(countdown=0, throw=False)
        raise Reject("no")
    elif how == "raised, then an error":
        try:
            self.retry(countdown=0)
        finally:
            raise ValueError("no")
    return "went on"


@app.task(bind=True)
async def leaves_child_behind(self, path):
    """Its child asks for a retry when the body has ended."""
    if not self.request.retries:
        self.late = asyncio.create_task(_ask_late(self, path, self.request.id))


async def _ask_late(task, path, task_id):
    while not os.path.exists(path):
        await asyncio.sleep(0.01)
    try:
        task.retry(countdown=0)
    except BaseException as exc:
        record("late", id=task_id, type=type(exc).__name__)


# Other places.


class RetriesInHandlers(celery.Task):
    """Retries where no body is."""

    abstract = True

    def before_start(self, task_id, args, kwargs):
        if list(args) == ["before_start"] and not self.request.retries:
            self.retry(countdown=0)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        if not self.request.retries:
            self.retry(countdown=0, throw=False)


@app.task(base=RetriesInHandlers, bind=True)
async def async_in_handler(self, where):
    if not self.request.retries:
        raise ValueError("no")
    return "again"


@app.task(base=RetriesInHandlers, bind=True)
def def_in_handler(self, where):
    if not self.request.retries:
        raise ValueError("no")
    return "again"


class CallsAgain(celery.Task):
    """A wrapper around the body asks for the retry."""

    abstract = True

    def __call__(self, *args, **kwargs):
        try:
            return super().__call__(*args, **kwargs)
        except KeyError:
            raise self.retry(countdown=0) from None


@app.task(base=CallsAgain, bind=True)
async def async_in_call(self):
    if not self.request.retries:
        raise KeyError("no")
    return "again"


@app.task(base=CallsAgain, bind=True)
def def_in_call(self):
    if not self.request.retries:
        raise KeyError("no")
    return "again"


@app.task(bind=True)
async def asks_with_options(self, options, value=None):
    if not self.request.retries:
        raise self.retry(**options)
    return [
        self.request.delivery_info["routing_key"],
        self.request.delivery_info["priority"],
        self.request.expires,
        value,
    ]


@app.task(bind=True)
async def enqueues_itself(self, times):
    """Not a retry: another task of the same name."""
    if times:
        return self.apply_async((times - 1,)).id
    return None


@app.task(bind=True)
async def sees_parents(self):
    if not self.request.retries:
        place.set("body")
        raise self.retry(countdown=0)
    return [self.request.root_id, self.request.parent_id]


# Custom classes.


class UsesResult(celery.Task):
    """Uses what its parent's methods return, as libraries do."""

    abstract = True

    def apply_async(self, *args, **options):
        result = super().apply_async(*args, **options)
        current = celery.current_task
        if current and options.get("retries"):
            record(
                "applied",
                id=result.id,
                type=type(result).__name__,
                app=result.app.main,
                stores=type(result.backend).__name__,
                ready=result.ready(),
            )
        return result

    def retry(self, *args, **kwargs):
        noted.delay(self.request.id)
        reason = super().retry(*args, throw=False, **kwargs)
        record("asked", id=reason.sig.id)
        raise reason


@app.task
def noted(task_id):
    record("noted", id=task_id)


class BreaksAfterApply(celery.Task):
    """Its own code fails when the message was given away."""

    abstract = True

    def apply_async(self, *args, **options):
        result = super().apply_async(*args, **options)
        if options.get("retries"):
            raise RuntimeError("after super()")
        return result


class BreaksAfterRetry(celery.Task):
    """Likewise."""

    abstract = True

    def retry(self, *args, **kwargs):
        super().retry(*args, throw=False, **kwargs)
        raise KeyError("after super()")


@app.task(base=UsesResult, bind=True)
async def async_uses_result(self, value):
    if not self.request.retries:
        raise self.retry(countdown=0.1)
    return value


@app.task(base=UsesResult, bind=True)
def def_uses_result(self, value):
    if not self.request.retries:
        raise self.retry(countdown=0.1)
    return value


@app.task(base=BreaksAfterApply, bind=True)
async def breaks_after_apply(self):
    raise self.retry(countdown=0)


@app.task(base=BreaksAfterRetry, bind=True)
async def breaks_after_retry(self):
    raise self.retry(countdown=0)


class AsksPast(AsyncTask):
    """Its methods call Celery's own `retry`, past the one that they override."""

    abstract = True

    async def retry(self, *args, **kwargs):
        await asyncio.sleep(0)
        return super().retry(*args, **kwargs)

    async def ask_later(self):
        await asyncio.sleep(0)
        return super().retry(countdown=0, throw=False)

    def ask(self):
        return super().retry(countdown=0)

    async def ask_twin(self):
        return await self.retry(countdown=0)


@app.task(base=AsksPast, bind=True)
async def async_asks_past(self, how):
    record("began", id=self.request.id)
    if self.request.retries:
        return "again"
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(_ask_past(self, how))


@app.task(base=AsksPast, bind=True)
def def_asks_past(self, how):
    record("began", id=self.request.id)
    if self.request.retries:
        return "again"
    asyncio.run(_ask_past(self, how))


async def _ask_past(task, how):
    if how == "super":
        raise task.ask()
    if how == "async super":
        raise await task.ask_later()
    if how == "async retry":
        raise await task.ask_twin()
    raise celery.Task.retry(task, countdown=0)


@app.task
def total(values):
    return sum(values)


# The message cannot be sent.


class Handled(celery.Task):
    """Records its handlers."""

    abstract = True

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        record("on_retry", id=task_id)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        record("on_failure", id=task_id, type=type(exc).__name__)

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        record("after_return", id=task_id, status=status)


@app.task(base=Handled, bind=True, acks_late=True)
async def async_unsendable(self, throw=True):
    self.retry(queue="none of task_queues", countdown=0, throw=throw)
    return "went on"


@app.task(base=Handled, bind=True, acks_late=True)
def def_unsendable(self, throw=True):
    self.retry(queue="none of task_queues", countdown=0, throw=throw)
    return "went on"


@app.task(bind=True, acks_late=True)
async def async_unserialisable(self, value):
    self.retry(args=[object()], countdown=0)


@app.task(bind=True, acks_late=True)
def def_unserialisable(self, value):
    self.retry(args=[object()], countdown=0)


@app.task(bind=True)
async def async_changes_arguments(self, own, given=None):
    if self.request.retries:
        return [own, given]
    given = ["given"]
    try:
        raise self.retry(kwargs={"given": given}, countdown=0)
    finally:
        own.append("changed")
        given.append("changed")


@app.task(bind=True)
def def_changes_arguments(self, own, given=None):
    if self.request.retries:
        return [own, given]
    given = ["given"]
    try:
        raise self.retry(kwargs={"given": given}, countdown=0)
    finally:
        own.append("changed")
        given.append("changed")


@app.task
def errback(request, exc, traceback):
    record("errback", id=request.id)


# What comes between the end of an attempt and the message of the next one.


@signals.before_task_publish.connect
def on_gate(headers, **kwargs):
    if not headers["task"].endswith("gated") or not headers["retries"]:
        return
    path = app.tasks[headers["task"]].path
    record("at the gate", id=headers["id"])
    while not os.path.exists(path):
        time.sleep(0.01)
    if pathlib.Path(path).read_text() == "kill":
        pathlib.Path(path).write_text("killed")
        os.kill(os.getpid(), signal.SIGKILL)


async def _pass_gate(task, path):
    task.path = path
    if not task.request.retries:
        raise task.retry(countdown=0)
    return "again"


@app.task(bind=True)
async def early_gated(self, path):
    return await _pass_gate(self, path)


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
async def late_gated(self, path):
    return await _pass_gate(self, path)


@app.task(bind=True, acks_late=True)
def def_gated(self, path):
    self.path = path
    if not self.request.retries:
        raise self.retry(countdown=0)
    return "again"


@app.task(bind=True)
async def tells_when_cancelled(self):
    record("waits", id=self.request.id)
    try:
        await asyncio.sleep(600)
    finally:
        record("cancelled", id=self.request.id)


@app.task
async def outlasts_limits(seconds):
    await asyncio.sleep(seconds)
    return seconds


# One after the other.

running = {}


@signals.task_prerun.connect
def on_first(task_id, task, **kwargs):
    if task.name.endswith("overlaps"):
        if task_id in running:
            record("overlap", id=task_id)
        running[task_id] = True
        record("begins", id=task_id, at=time.monotonic())


@signals.task_postrun.connect
def on_last(task_id, task, **kwargs):
    if task.name.endswith("overlaps"):
        time.sleep(0.002)
        running.pop(task_id, None)
        record("ends", id=task_id, at=time.monotonic())


@app.task(bind=True, max_retries=None)
async def async_overlaps(self, times):
    if self.request.retries < times:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task(bind=True, max_retries=None)
def def_overlaps(self, times):
    if self.request.retries < times:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task(bind=True, max_retries=None, autoretry_for=(KeyError,), default_retry_delay=0)
async def auto_overlaps(self, times):
    if self.request.retries < times:
        raise KeyError("again")
    return self.request.retries


@app.task(bind=True, max_retries=None, acks_late=True, ignore_result=True)
async def quiet_overlaps(self, times):
    if self.request.retries < times:
        self.retry(countdown=0, throw=False)
