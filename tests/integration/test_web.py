"""A web server dispatches tasks and awaits their results, and its loop stays free."""

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys

import httpx
import pytest
from worker import HERE, PATIENCE, wait_for

from tests.chaos.proxy import Proxy
from tests.servers import free_port

REQUESTS = 1000

#: Seconds for which the broker says nothing.
SILENCE = 10.0

#: Seconds that the loop of the server may be busy, on a slow machine, with what is its own.
BUSY = 5.0


class WebServer:
    """uvicorn, with the app in ``apps/web.py``."""

    def __init__(self, environment, folder):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = environment
        self._log = folder / "web.log"

    def __enter__(self):
        command = ("uvicorn", "apps.web:api", "--port", self.port, "--no-access-log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *map(str, command)],
                env={**os.environ, **self._environment, "PYTHONPATH": str(HERE)},
                cwd=HERE,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=allow_descriptors,
            )
        wait_for(lambda: "Uvicorn running" in self.log(), self.log)
        return self

    def __exit__(self, exc_type, exc, traceback):
        self._process.send_signal(signal.SIGTERM if exc is None else signal.SIGKILL)
        self._process.wait(PATIENCE)
        if exc is not None:
            exc.add_note(f"the log of the web server:\n{self.log()}")

    def log(self):
        return self._log.read_text(errors="replace")


def allow_descriptors():
    """As many connections as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@pytest.fixture(scope="module", autouse=True)
def descriptors():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_descriptors()
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Browser(httpx.AsyncClient):
    """Whoever uses the web server, many at a time."""

    def __init__(self, server):
        limits = httpx.Limits(max_connections=None)
        super().__init__(base_url=server.url, limits=limits, timeout=PATIENCE, trust_env=False)

    async def add(self, x, y):
        return await self.post("/add", params={"x": x, "y": y})

    async def pulse(self):
        return (await self.get("/pulse")).json()


@pytest.fixture(scope="module")
def served(transport, start_worker, tmp_path_factory):
    """A web server and a worker on each transport; on RabbitMQ with RPC results."""
    if transport.name == "rabbitmq":
        transport.backend = "rpc://"
    with (
        start_worker(transport, "client", "-c", "200", "--processes", "2"),
        WebServer(transport.environment(), tmp_path_factory.mktemp("web")) as server,
    ):
        yield server


def test_many_requests(served):
    """1,000 requests at a time each get the result of a task of their own; few threads do it."""

    async def main():
        async with contextlib.AsyncExitStack() as stack:
            # One browser takes long to find a connection among a thousand.
            browsers = [await stack.enter_async_context(Browser(served)) for _ in range(20)]
            requests = [browsers[n % 20].add(n, 1) for n in range(REQUESTS)]
            answers = await asyncio.gather(*requests)
            return [answer.json() for answer in answers], await browsers[0].pulse()

    sums, pulse = asyncio.run(main())

    assert sums == list(range(1, REQUESTS + 1))
    assert pulse["threads"] < 30


@pytest.fixture(params=["redis", "rabbitmq"])
def start_slow(request, new_transport, start_worker, tmp_path):
    """Start a web server whose broker, and results, can be made slow; the worker's cannot."""
    transport = new_transport(request.param)
    if request.param == "rabbitmq":
        transport.backend = "rpc://"
    broker = request.getfixturevalue(f"{request.param}_server")
    with contextlib.ExitStack() as stack:

        def start(**settings):
            stack.enter_context(start_worker(transport, "client", "-c", "50", "--processes", "1"))
            proxy = stack.enter_context(Proxy(broker.port))
            environment = transport.environment()
            environment["ASYNCPOOL_TEST_BROKER"] = proxy.before(transport.broker)
            if request.param == "redis":
                environment["ASYNCPOOL_TEST_BACKEND"] = proxy.before(transport.backend)
            environment["ASYNCPOOL_TEST_SETTINGS"] = "; ".join(
                f"{name}={value!r}" for name, value in settings.items()
            )
            return proxy, stack.enter_context(WebServer(environment, tmp_path))

        yield start


def test_slow_broker(start_slow):
    """While a broker says nothing for 10 s the loop turns; then all is sent, and answered."""
    proxy, server = start_slow(broker_connection_timeout=PATIENCE)

    async def main():
        async with Browser(server) as browser:
            assert (await browser.add(1, 2)).json() == 3
            await browser.pulse()

            proxy.freeze()
            requests = [asyncio.create_task(browser.add(n, 1)) for n in range(50)]
            await asyncio.sleep(SILENCE)
            during = await browser.pulse()
            answered = sum(request.done() for request in requests)
            proxy.thaw()

            answers = await asyncio.gather(*requests)
            assert [answer.json() for answer in answers] == list(range(1, 51))
            return answered, during, await browser.pulse()

    answered, during, after = asyncio.run(main())

    assert answered == 0
    assert during["longest"] < BUSY
    assert after["longest"] < BUSY


def test_broker_down(start_slow):
    """A broker that refuses, or says nothing, is a clear error soon; the loop turns meanwhile."""
    proxy, server = start_slow()

    async def main():
        async with Browser(server) as browser:
            proxy.cut()
            refused = await browser.add(1, 2)
            proxy.freeze()
            proxy.heal()
            silent = await browser.add(1, 2)
            pulse = await browser.pulse()
            proxy.thaw()
            return refused, silent, pulse, await browser.add(1, 2)

    refused, silent, pulse, healed = asyncio.run(main())

    assert refused.status_code == silent.status_code == 503
    assert "no connection to the broker" in refused.text
    assert "no connection" in silent.text
    assert pulse["longest"] < BUSY
    assert healed.json() == 3
