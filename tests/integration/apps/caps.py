"""Tasks with caps, and a record of what runs at once."""

import asyncio
import os

from .base import configure, make_app
from .recording import record

app = make_app("caps")
app.conf.asyncpool_limits = {"apps.caps.scrape": 2, "apps.caps.pdf_*": 3, "apps.caps.pfd": 1}
configure(app, "CAPS_CONF")


async def run(task, path):
    record("started", id=task.request.id, cap=task.name[:14])
    while not os.path.exists(path):
        await asyncio.sleep(0.02)
    record("ended", id=task.request.id, cap=task.name[:14])
    return "done"


@app.task(bind=True)
async def scrape(self, path):
    """Wait for *path*; two at once."""
    return await run(self, path)


@app.task(bind=True)
async def pdf_render(self, path):
    """Wait for *path*; three at once, together with the other."""
    return await run(self, path)


@app.task(bind=True)
async def pdf_merge(self, path):
    """Wait for *path*."""
    return await run(self, path)


@app.task(bind=True)
async def neighbour(self):
    """A task without a cap."""
    record("started", id=self.request.id)
    return os.getpid()
