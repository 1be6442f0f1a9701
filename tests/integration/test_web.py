"""A web server dispatches tasks and awaits their results, and its loop stays free."""

import asyncio
import contextlib
import resource

import pytest
from web_server import Browser, WebServer, allow_descriptors
from worker import PATIENCE

from tests.chaos.proxy import Proxy

REQUESTS = 1000

#: Seconds for which the broker says nothing.
SILENCE = 10.0

#: How often the loop must turn meanwhile, on a slow machine; a blocked one does not at all.
BEATS = 20


@pytest.fixture(scope="module", autouse=True)
def descriptors():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_descriptors()
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def served(transport, start_worker, tmp_path_factory):
    """A web server and a worker on each transport; on RabbitMQ with RPC results."""
    if transport.name == "rabbitmq":
        transport.backend = "rpc://"
    with (
        start_worker(transport, "client", "-c", "200", "--processes", "2"),
        WebServer(
            "apps.web:api", transport.environment(), tmp_path_factory.mktemp("web")
        ) as server,
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
            return proxy, stack.enter_context(WebServer("apps.web:api", environment, tmp_path))

        yield start


def test_slow_broker(start_slow):
    """While a broker says nothing for 10 s the loop turns; then all is sent, and answered."""
    proxy, server = start_slow()

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
            return answered, during

    answered, during = asyncio.run(main())

    assert answered == 0
    assert during["beats"] > BEATS
    assert during["longest"] < SILENCE


def test_broker_down(start_slow):
    """A broker that refuses, or says nothing, is a clear error soon; the loop turns meanwhile."""
    proxy, server = start_slow(broker_connection_timeout=4)

    async def main():
        async with Browser(server) as browser:
            proxy.cut()
            refused = await browser.add(1, 2)
            proxy.freeze()
            proxy.heal()
            await browser.pulse()
            silent = await browser.add(1, 2)
            pulse = await browser.pulse()
            proxy.thaw()
            return refused, silent, pulse, await until_answered(browser)

    async def until_answered(browser):
        async with asyncio.timeout(PATIENCE):
            while (answer := await browser.add(1, 2)).status_code == 503:
                continue
        return answer

    refused, silent, pulse, healed = asyncio.run(main())

    assert refused.status_code == silent.status_code == 503
    assert "no connection to the broker" in refused.text
    assert "no connection" in silent.text
    assert pulse["beats"] > BEATS
    assert healed.json() == 3
