"""Tasks of celery-singleton, as its pages show them."""

import asyncio

from celery_singleton import Singleton

from .base import make_app
from .recording import record

app = make_app("singleton")
app.conf.task_create_missing_queues = False
app.conf.singleton_backend_url = app.conf.result_backend


class RetriedSingleton(Singleton):
    """The usual way to retry one: its own lock must not be in its way."""

    abstract = True

    def retry(self, *args, **kwargs):
        self.release_lock(self.request.args, self.request.kwargs)
        return super().retry(*args, **kwargs)


@app.task(base=Singleton, bind=True)
async def async_next_page(self, page):
    """Retries with other arguments, of which there is another lock."""
    await asyncio.sleep(0)
    record("ran", id=self.request.id, page=page)
    if page < 3:
        raise self.retry(args=[page + 1], countdown=0)
    return page


@app.task(base=Singleton, bind=True)
def def_next_page(self, page):
    record("ran", id=self.request.id, page=page)
    if page < 3:
        raise self.retry(args=[page + 1], countdown=0)
    return page


@app.task(base=RetriedSingleton, bind=True)
async def async_again(self, path):
    record("ran", id=self.request.id)
    if self.request.retries < 3:
        raise self.retry(countdown=0.05)
    return self.request.retries


@app.task(base=RetriedSingleton, bind=True)
def def_again(self, path):
    record("ran", id=self.request.id)
    if self.request.retries < 3:
        raise self.retry(countdown=0.05)
    return self.request.retries


@app.task(base=RetriedSingleton, bind=True, autoretry_for=(KeyError,), default_retry_delay=0)
async def auto_again(self, path):
    record("ran", id=self.request.id)
    if self.request.retries < 3:
        raise KeyError("again")
    return self.request.retries


@app.task(base=Singleton, bind=True)
async def calls_itself(self, times):
    """A body that sends its own kind, in the blocking way."""
    first = calls_itself.delay(-1)
    second = calls_itself.delay(-1)
    return [first.id, second.id]


@app.task(base=RetriedSingleton, bind=True)
async def unsendable(self, page):
    raise self.retry(queue="not one of task_queues", countdown=0)
