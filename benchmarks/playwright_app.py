"""Page tasks: with the browser of the process, and with one of their own.

Environment: ``CHROMIUM`` (path), ``CHROMIUM_ARGS``, and Celery's own variables for
the broker and the results.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import AsyncIterator

from celery import Celery
from playwright.async_api import Browser, async_playwright
from playwright.sync_api import sync_playwright

from celery_asyncpool import lifespan

app = Celery("benchmarks.playwright_app", set_as_current=False)
app.conf.worker_proc_alive_timeout = 60


@lifespan(app)
async def browser() -> AsyncIterator[Browser]:
    """One Chromium for all pages of a process."""
    async with async_playwright() as playwright:
        async with await playwright.chromium.launch(
            executable_path=os.environ["CHROMIUM"], args=shlex.split(os.environ["CHROMIUM_ARGS"])
        ) as chromium:
            yield chromium


@app.task
async def shared(url: str) -> str:
    """The title of a page of the process's browser."""
    page = await browser.get().new_page()
    try:
        await page.goto(url)
        return await page.title()
    finally:
        await page.close()


@app.task
def own(url: str) -> str:
    """The title of the one page of a browser that is started for it."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=os.environ["CHROMIUM"], args=shlex.split(os.environ["CHROMIUM_ARGS"])
        )
        try:
            page = chromium.new_page()
            page.goto(url)
            return page.title()
        finally:
            chromium.close()
