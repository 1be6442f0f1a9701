"""Dispatch and waits where a network fails, where there are many, and where a process forks."""

import asyncio
import contextlib
import json
import os
import threading
import uuid
from contextvars import ContextVar
from dataclasses import replace
from queue import Empty

import pytest
import redis as redis_client
from celery import signals, states
from worker import PATIENCE, Client, wait_for

from celery_asyncpool import apply_async, get
from celery_asyncpool.client.listeners import listener_of
from tests.chaos.proxy import Proxy

WAITS = 5000


@pytest.fixture
def results(new_transport):
    """An app with a Redis backend, whose results the test stores itself."""
    with contextlib.closing(Results(new_transport("redis"))) as results:
        yield results


class Results:
    """Stores results of tasks that never were, and tells who is subscribed to them."""

    def __init__(self, transport):
        self.transport = transport
        self.client = Client(transport, "apps.client")
        self.app = self.client.app
        self._redis = redis_client.Redis.from_url(transport.backend)
        #: The number of each task, by its channel in Redis.
        self.ids = {}

    def close(self):
        self._redis.close()
        self.client.close()

    def new(self, app=None):
        """The result of another task, for *app*."""
        result = (app or self.app).AsyncResult(uuid.uuid4().hex)
        self.ids[f"celery-task-meta-{result.id}".encode()] = result.id
        return result

    def store(self, values):
        """Store, and publish, these *values* as the backend does, by the tasks' ids."""
        for task_id, value in values.items():
            meta = {"task_id": task_id, "status": states.SUCCESS, "result": value}
            key = f"celery-task-meta-{task_id}"
            with self._redis.pipeline() as pipe:
                pipe.set(key, json.dumps(meta), ex=60)
                pipe.publish(key, json.dumps(meta))
                pipe.execute()

    def subscribed(self):
        """How many of the tasks somebody is subscribed to."""
        return len(self.ids.keys() & set(self._redis.pubsub_channels("celery-task-meta-*")))

    async def wait_subscribed(self, count):
        await asyncio.to_thread(wait_for, lambda: self.subscribed() == count, self.subscribed)


def sockets():
    """How many sockets this process has."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    return count


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs Linux")
def test_5000_waits(results):
    """5,000 waits are one thread and two connections; cancelled ones are not subscribed to."""

    async def main():
        await asyncio.to_thread(results.subscribed)
        threads, connections = set(threading.enumerate()), sockets()
        waits = [asyncio.create_task(get(results.new(), timeout=PATIENCE)) for _ in range(WAITS)]
        await results.wait_subscribed(WAITS)
        ours = [t.name for t in threading.enumerate() if t not in threads]
        assert [name for name in ours if not name.startswith("asyncio")] == ["asyncpool-results"]
        # Subscription, reads, and the two ends of what wakes the thread.
        assert sockets() <= connections + 4

        for wait in waits[::2]:
            wait.cancel()
        await results.wait_subscribed(WAITS // 2)
        values = {task_id: n for n, task_id in enumerate(results.ids.values()) if n % 2}
        await asyncio.to_thread(results.store, values)
        assert await asyncio.gather(*waits[1::2]) == list(range(1, WAITS, 2))
        await results.wait_subscribed(0)

    asyncio.run(main())


def test_lost_redis_connection(results, redis_server):
    """A wait survives a cut: what was stored meanwhile, and what comes later, arrives."""
    with Proxy(redis_server.port) as proxy:
        far = Results(through(proxy, results.transport))

        async def main():
            during, later = results.new(far.app), results.new(far.app)
            waits = [asyncio.create_task(get(r, timeout=PATIENCE)) for r in (during, later)]
            await results.wait_subscribed(2)
            proxy.cut()
            results.store({during.id: "during"})
            await results.wait_subscribed(0)
            proxy.heal()
            assert await waits[0] == "during"
            await results.wait_subscribed(1)
            results.store({later.id: "later"})
            assert await waits[1] == "later"

        with contextlib.closing(far):
            asyncio.run(main())


def test_lost_rpc_connection(new_transport, start_worker, rabbitmq_server):
    """After a cut, RPC results of what is dispatched then arrive."""
    transport = new_transport("rabbitmq")
    transport.backend = "rpc://"
    with (
        start_worker(transport, "client", "-c", "4", "--processes", "1"),
        Proxy(rabbitmq_server.port) as proxy,
    ):
        client = Client(through(proxy, transport), "apps.client")

        async def add(x, y):
            return await get(await apply_async(client.s("add", x, y)), timeout=PATIENCE)

        async def main():
            assert await add(1, 2) == 3
            proxy.cut()
            proxy.heal()
            await asyncio.to_thread(wait_for, lambda: proxy.connections, "a connection")
            assert await add(3, 4) == 7

        with contextlib.closing(client):
            asyncio.run(main())


def through(proxy, transport):
    """The same transport, behind *proxy*, RPC results too."""
    backend = transport.backend
    if backend != "rpc://":
        backend = proxy.before(backend)
    return replace(transport, broker=proxy.before(transport.broker), backend=backend)


@pytest.mark.parametrize("name", ["redis", "rabbitmq"])
def test_order(name, new_transport):
    """One coroutine's messages leave in its order, also when some are cancelled on their way."""
    transport = new_transport(name)
    client = Client(transport, "apps.client")

    async def main():
        sent = []
        for number in range(200):
            try:
                async with asyncio.timeout(0.001 * (number % 4) if number % 4 else None):
                    await apply_async(client.s("add", number, 0))
                sent.append(number)
            except TimeoutError:
                continue
        return sent

    with contextlib.closing(client):
        sent = asyncio.run(main())
        numbers = received(client.app, transport.queue, sent[-1])

    assert numbers == sorted(set(numbers))
    assert set(sent) <= set(numbers)


def received(app, queue, last):
    """The first arguments of the messages in *queue*, up to *last*."""
    numbers = []
    with app.connection_for_read() as connection, connection.SimpleQueue(queue) as messages:
        with contextlib.suppress(Empty):
            while last not in numbers:
                message = messages.get(timeout=PATIENCE)
                message.ack()
                numbers.append(message.payload[0][0])
    return numbers


where = ContextVar("where", default=None)


def test_context(new_transport):
    """What publishes for a coroutine sees its context variables."""
    client = Client(new_transport("redis"), "apps.client")
    seen = {}

    @signals.before_task_publish.connect
    def look(headers, **kwargs):
        seen[headers["id"]] = where.get()

    async def send(place):
        where.set(place)
        return (await apply_async(client.s("add", 1, 2))).id, place

    async def main():
        return await asyncio.gather(*[send(place) for place in range(50)])

    with contextlib.closing(client):
        sent = asyncio.run(main())

    assert seen == dict(sent)


@pytest.mark.parametrize("name", ["redis", "rabbitmq"])
def test_used_before_the_fork(name, new_transport, start_worker):
    """A main process that has dispatched and waited leaves nothing in the way of its pool."""
    transport = new_transport(name)
    if name == "rabbitmq":
        transport.backend = "rpc://"
    options = ("-c", "20", "--processes", "2")
    with start_worker(transport, "client_before_fork", *options) as worker:
        [threads] = worker.records("threads")
        assert "asyncpool-results" in threads["names"]
        assert worker.records("waited")
        client = Client(transport, "apps.client")
        with contextlib.closing(client):
            results = [client.send("dispatches", 5) for _ in range(4)]
            assert [result.get() for result in results] == [[1, 2, 3, 4, 5]] * 4


def test_listener_ends_when_nobody_waits(results, monkeypatch):
    """The thread goes when nobody has waited for a while, and comes back for the next wait."""
    monkeypatch.setattr("celery_asyncpool.client.redis_results.IDLE", 0.1)

    async def main(value):
        wait = asyncio.create_task(get(result := results.new(), timeout=PATIENCE))
        await results.wait_subscribed(1)
        results.store({result.id: value})
        return await wait, listener_of(results.app)

    for value in ("first", "second"):
        got, listener = asyncio.run(main(value))
        assert got == value
        wait_for(lambda listener=listener: listener._thread is None, "the thread's end")
