"""The same Playwright task in two pools, and the README's example as it is written."""

import os
import re
import signal
from pathlib import Path

import pytest
from proc import look
from worker import Client, Worker, wait_for

from tests.conftest import require_module
from tests.pages import Pages

CHROMIUM = ("chromium", "chrome")
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def pages():
    with Pages() as pages:
        yield pages


@pytest.fixture
def start(new_transport, chromium, tmp_path):
    """Start a worker of the pool *name*."""

    def start(name, *args):
        return Worker(
            new_transport("redis"),
            "playwright_app",
            tmp_path,
            *args,
            env={**chromium, "PLAYWRIGHT_LAZY": "yes"},
            selection=("-P", name),
        )

    return start


@pytest.mark.parametrize("task", ["plain_async", "plain"])
def test_asyncpool(start, pages, task):
    """Several at once: on the pool's loop, and each with a loop of its own in a thread."""
    with start("asyncpool", "-c", 4, "--processes", 1) as worker:
        url = pages.url(f"/held/{task}")
        results = [worker.client.send(task, url) for _ in range(3)]
        wait_for(lambda: pages.asked.count(f"/held/{task}") == 3, worker.tail)

        pages.release(task)

        assert [result.get() for result in results] == [task] * 3


def test_gevent(start, pages):
    """With gevent the same task fails while another one runs: both are in one thread."""
    require_module("gevent")
    worker = start("gevent", "-c", 4)
    worker.wait_ready = lambda: worker.wait_log(" ready.")
    with worker:
        url = pages.url("/held/gevent")
        first = worker.client.send("plain", url)
        wait_for(lambda: "/held/gevent" in pages.asked, worker.tail)

        more = [worker.client.send("plain", url) for _ in range(2)]

        for result in more:
            with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
                result.get()
        pages.release("gevent")
        assert first.get() == "gevent"


class ReadmeWorker(Worker):
    """A worker with the example of README.md, word for word, as its app."""

    def __init__(self, transport, tmp_path, chromium):
        [code] = re.findall(r"```python\n(# proj.py: .*?)```", README.read_text(), re.DOTALL)
        (tmp_path / "proj.py").write_text(code)
        env = {
            **chromium,
            "PROJ_BROKER": transport.broker,
            "PROJ_RESULTS": transport.backend,
            "PYTHONPATH": str(tmp_path),
        }
        options = code.partition("-P asyncpool ")[2].partition("\n")[0].split()
        super().__init__(transport, "unused", tmp_path, *options, env=env)
        self.command[self.command.index("apps.unused")] = "proj"
        self.client.close()
        self.client = Client(transport, "proj")


def test_readme(new_transport, chromium, tmp_path, pages):
    """The example works: titles come, a browser that is killed is replaced, nothing is left."""
    with ReadmeWorker(new_transport("redis"), tmp_path, chromium) as worker:
        url = pages.url("/title/as-it-is-written")
        results = [worker.client.send("title", url) for _ in range(8)]
        assert [result.get() for result in results] == ["as-it-is-written"] * 8
        browsers = [p for pid in worker.family() if (p := look(pid)) and p.program in CHROMIUM]
        mains = [process for process in browsers if "--type=" not in process.command]
        assert len(mains) == 2

        for process in mains:
            os.kill(process.pid, signal.SIGKILL)
        for process in mains:
            wait_for(lambda pid=process.pid: look(pid) is None, "it has died")

        results = [worker.client.send("title", url) for _ in range(8)]
        assert [result.get() for result in results] == ["as-it-is-written"] * 8
