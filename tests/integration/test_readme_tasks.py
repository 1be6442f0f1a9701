"""The examples of README.md, "Writing tasks", word for word."""

import asyncio
import re
from pathlib import Path

import pytest
from web_server import Browser, WebServer
from worker import PATIENCE, Client, Worker

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def shop(redis_transport, tmp_path_factory):
    """A worker with the example as its app, and the web server beside it."""
    folder = tmp_path_factory.mktemp("shop")
    for name in ("shop", "web"):
        [code] = re.findall(rf"```python\n(# {name}.py: .*?)```", README.read_text(), re.DOTALL)
        (folder / f"{name}.py").write_text(code)
    # All that the test adds: a queue of its own.
    with (folder / "shop.py").open("a") as module:
        module.write(f"\napp.conf.task_default_queue = {redis_transport.queue!r}\n")
    environment = {
        "SHOP_BROKER": redis_transport.broker,
        "SHOP_RESULTS": redis_transport.backend,
        "PYTHONPATH": str(folder),
    }
    options = ("-c", "20", "--processes", "2")
    worker = Worker(redis_transport, "unused", folder, *options, env=environment)
    worker.command[worker.command.index("apps.unused")] = "shop"
    worker.client.close()
    worker.client = Client(redis_transport, "shop")
    with worker, WebServer("web:api", environment, folder) as server:
        yield worker, server


def test_tasks(shop):
    """Each task does what it says, and none blocks its loop."""
    worker, _ = shop
    total = worker.client.send("total", ["tea", "milk"])
    prices = worker.client.send("cheapest_first", ["milk", "tea"])
    order = worker.client.send("order", ["tea", "milk"])

    assert total.get(PATIENCE) == 70
    assert prices.get(PATIENCE) == [30, 40]
    assert order.get(PATIENCE) == "2 ordered"
    assert "blocks the event loop" not in worker.log()


def test_web(shop):
    """The web server answers with the result of a task."""

    async def main():
        async with Browser(shop[1]) as browser:
            return (await browser.get("/total", params={"items": "tea,milk"})).json()

    assert asyncio.run(main()) == 70
