"""Tasks and calls with limits, options and messages that are nonsense."""

import threading

from celery import Task
from celery.signals import task_received

from celery_asyncpool import AsyncTask

from .base import make_app
from .recording import record

app = make_app("refused")
app.conf.worker_prefetch_multiplier = 4


class WithHook(Task):
    """One of its kind: nothing would call this hook of a task that has none of its own."""

    abstract = True

    def on_soft_limit(self):
        """Nothing."""


@app.task
async def add(x, y):
    return x + y


@app.task(bind=True, time_limit=30)
async def limited(self, seconds=0):
    record("ran", id=self.request.id, timelimit=self.request.timelimit)
    return "ran"


@app.task(bind=True, time_limit=30, acks_late=True)
async def limited_late(self, seconds=0):
    record("ran", id=self.request.id)
    return "ran"


@app.task(bind=True, soft_time_limit=30, time_limit=30)
async def same_limits(self):
    return "ran"


@app.task(bind=True, max_retries=1)
async def retried(self):
    if not self.request.retries:
        raise self.retry(countdown=0)
    return self.request.timelimit


@app.task(soft_time_limit=60, time_limit=30)
async def hard_first():
    return "ran"


@app.task(soft_time_limit=60, time_limit=30, acks_late=True)
def hard_first_late():
    return "ran"


@app.task(time_limit="soon")
async def junk_limit():
    return "ran"


@app.task(time_limit=float("nan"))
def nan_limit():
    return "ran"


@app.task(base=AsyncTask, on_soft_limit=print)
async def hook_without_limit():
    return "ran"


@app.task(on_soft_limit="told", soft_time_limit=5)
async def hook_is_text():
    return "ran"


@app.task(base=WithHook)
async def hook_of_base():
    return "ran"


@app.task
async def unpicklable():
    return "ran"


@app.task(acks_late=True)
async def unpicklable_late():
    return "ran"


@task_received.connect
def add_what_cannot_be_sent(request, **kwargs):
    if "unpicklable" in request.name:
        request.request_dict["lock"] = threading.Lock()
