"""Tasks to be seen and controlled from outside."""

import asyncio

from .base import make_app
from .recording import record

app = make_app("monitored")
app.conf.worker_pool_restarts = True


@app.task
async def async_add(x, y):
    await asyncio.sleep(0)
    return x + y


@app.task
def def_add(x, y):
    return x + y


@app.task(bind=True)
async def waits(self):
    """Until it is ended from outside."""
    record("started", id=self.request.id)
    await asyncio.sleep(600)
