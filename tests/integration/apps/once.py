"""Tasks of celery-once, as its pages show them."""

import asyncio

from celery_once import QueueOnce

from .base import make_app
from .recording import record

app = make_app("once")
app.conf.ONCE = {
    "backend": "celery_once.backends.Redis",
    "settings": {"url": app.conf.result_backend, "default_timeout": 600},
}


class RecordingOnce(QueueOnce):
    """Uses what `apply_async` returns, above the library's own."""

    abstract = True

    def apply_async(self, *args, **options):
        result = super().apply_async(*args, **options)
        record("applied", id=result.id, retries=options.get("retries", 0))
        return result


@app.task(base=RecordingOnce, bind=True)
async def async_once(self, key, times):
    await asyncio.sleep(0)
    record("ran", id=self.request.id)
    if self.request.retries < times:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task(base=RecordingOnce, bind=True)
def def_once(self, key, times):
    record("ran", id=self.request.id)
    if self.request.retries < times:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task(base=RecordingOnce, bind=True, autoretry_for=(KeyError,), default_retry_delay=0)
async def auto_once(self, key, times):
    record("ran", id=self.request.id)
    if self.request.retries < times:
        raise KeyError("again")
    return self.request.retries


@app.task(base=RecordingOnce, bind=True, once={"unlock_before_run": True})
async def unlocked_once(self, key, times):
    record("ran", id=self.request.id)
    if self.request.retries < times:
        raise self.retry(countdown=0)
    return self.request.retries
