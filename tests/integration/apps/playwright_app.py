"""Tasks with pages of one browser per process, and with a browser of their own."""

import asyncio
import os
import shlex
from contextlib import asynccontextmanager

from playwright.async_api import Error, async_playwright

from celery_asyncpool import lifespan

from .base import configure, make_app
from .recording import record

app = make_app("playwright_app")
configure(app, "PLAYWRIGHT_CONF")


def launch(playwright):
    return playwright.chromium.launch(
        executable_path=os.environ["CHROMIUM"], args=shlex.split(os.environ["CHROMIUM_ARGS"])
    )


@lifespan(app, lazy=bool(os.environ.get("PLAYWRIGHT_LAZY")))
async def browser():
    async with async_playwright() as playwright, await launch(playwright) as chromium:
        yield chromium
        record("browser closes", connected=chromium.is_connected())


@asynccontextmanager
async def new_page(chromium):
    """A page that is closed whenever its task is cancelled: as it opens or closes, too."""
    opening = asyncio.ensure_future(chromium.new_page())
    try:
        yield await asyncio.shield(opening)
    finally:
        await asyncio.shield(asyncio.ensure_future(_close(opening)))


async def _close(opening):
    page = await opening
    await page.close()


async def visit(chromium, url):
    async with new_page(chromium) as page:
        await page.goto(url, timeout=0)
        return await page.title()


@app.task(bind=True)
async def title(self, url):
    """The title of a page, by the process's browser."""
    record("started", id=self.request.id)
    return [await visit(await browser.start(), url), os.getpid()]


@app.task(bind=True)
async def insist(self, url):
    """The same; when the browser is broken it is replaced."""
    record("started", id=self.request.id)
    chromium = await browser.start()
    try:
        return await visit(chromium, url)
    except Error:
        if chromium.is_connected():
            raise
        record("restarts", id=self.request.id)
        return await visit(await browser.restart(chromium), url)


@app.task(bind=True)
async def open_and_close(self, times):
    """Open pages and close them, until it is ended."""
    record("started", id=self.request.id)
    for _ in range(times):
        async with new_page(await browser.start()):
            pass


@app.task
async def contexts():
    """The process, and how many contexts, and pages, its browser has."""
    chromium = await browser.start()
    session = await chromium.new_browser_cdp_session()
    targets = (await session.send("Target.getTargets"))["targetInfos"]
    await session.detach()
    pages = [target["url"] for target in targets if target["type"] == "page"]
    return [os.getpid(), len(chromium.contexts), [url for url in pages if url != "about:blank"]]


@app.task(bind=True)
async def own_browser(self, url):
    """A page of a browser that lives for this task only; says where it is."""
    record("started", id=self.request.id)
    async with async_playwright() as playwright:
        async with await launch(playwright) as chromium:
            result = await visit(chromium, url)
            record("in browser", id=self.request.id)
            await _gate(self)
            record("closing browser", id=self.request.id)
        record("browser closed", id=self.request.id)
    return result


@app.task(bind=True)
async def own_driver(self, url):
    """It leaves the browser to ``__aexit__`` of async_playwright."""
    record("started", id=self.request.id)
    async with async_playwright() as playwright:
        result = await visit(await launch(playwright), url)
        record("in browser", id=self.request.id)
        await _gate(self)
        record("closing driver", id=self.request.id)
    record("driver closed", id=self.request.id)
    return result


async def _gate(task):
    gate = os.environ["PLAYWRIGHT_GATES"] + task.request.id
    while not os.path.exists(gate):
        await asyncio.sleep(0.02)


@app.task
def plain(url):
    """The same as a `def` task of another pool would do it."""
    return asyncio.run(_plain(url))


@app.task
async def plain_async(url):
    """The same on the pool's own loop."""
    return await _plain(url)


async def _plain(url):
    async with async_playwright() as playwright, await launch(playwright) as chromium:
        return await visit(chromium, url)
