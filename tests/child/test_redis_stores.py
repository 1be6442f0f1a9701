"""celery_asyncpool/child/redis_stores.py: results stored on the loop, on a real Redis."""

import asyncio
import contextlib
import functools
import gc
import os
import signal
import threading
import weakref

import pytest
import uvloop
from celery import Celery

from celery_asyncpool.child.redis_stores import Elsewhere, RedisStores, can_store
from celery_asyncpool.child.threadpool import ThreadPool
from celery_asyncpool.child.trace import drive
from tests.servers import RedisServer

# Celery uses it, redis-py wants it no more.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex")


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request):
    """Run a coroutine on each of the loops that processes may have."""
    new_loop = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}

    def run(coroutine):
        with asyncio.Runner(loop_factory=new_loop[request.param]) as runner:
            return runner.run(coroutine)

    return run


def new_app(url, **settings):
    app = Celery("stores", broker="memory://", backend=url, set_as_current=False)
    app.conf.update(settings)
    app.backend.client.flushdb()
    return app


@pytest.fixture
def app(redis_url):
    return new_app(redis_url)


@contextlib.asynccontextmanager
async def stores_of(app):
    threads = ThreadPool(2, "connecting")
    stores = RedisStores(app.backend, threads)
    try:
        yield stores
    finally:
        stores.stop()
        await asyncio.sleep(0)
        threads.stop()


def store(stores, number, value=None):
    """Store a result, in a tracer as the pool does."""
    value = number if value is None else value
    return drive(stores.call, "mark_as_done", f"id-{number}", value)


def stored(app, numbers):
    return [app.AsyncResult(f"id-{number}").result for number in numbers]


def test_results_leave_together(app, run):
    """What ends in one turn of the loop leaves in one write, what reads and what stores."""

    async def main():
        async with stores_of(app) as stores:
            await store(stores, 0)
            before = stores.counters()["redis_writes"]
            await asyncio.gather(*(store(stores, number) for number in range(1, 51)))
            return before, stores.counters()

    before, counters = run(main())

    assert before == 2
    assert counters == {"redis_results": 51, "redis_writes": 4, "redis_elsewhere": 0}
    assert stored(app, range(51)) == list(range(51))


def test_same_bytes_as_celery(app, run):
    """Keys, values and expiry are what Celery's own backend writes."""

    def entry(name):
        client = app.backend.client
        [key] = client.keys(f"*{name}")
        return client.get(key).replace(name.encode(), b""), client.ttl(key)

    async def main():
        async with stores_of(app) as stores:
            await store(stores, 1, {"a": ["é", None, 1.5]})

    app.backend.mark_as_done("theirs", {"a": ["é", None, 1.5]})
    run(main())

    (ours, our_ttl), (theirs, their_ttl) = entry("id-1"), entry("theirs")
    cut = ours.index(b'"date_done"'), theirs.index(b'"date_done"')
    assert ours[: cut[0]] == theirs[: cut[1]]
    assert abs(our_ttl - their_ttl) <= 60


def test_no_expiry(redis_url, run):
    """With ``result_expires = 0`` results stay."""
    app = new_app(redis_url, result_expires=0)

    async def main():
        async with stores_of(app) as stores:
            await store(stores, 1)

    run(main())

    assert [app.backend.client.ttl(key) for key in app.backend.client.keys("*")] == [-1]


def test_waiters_are_told(app, run):
    """Each result is published where Celery's clients listen."""
    pubsub = app.backend.client.pubsub(ignore_subscribe_messages=True)
    pubsub.psubscribe("*id-*")

    async def main():
        async with stores_of(app) as stores:
            await asyncio.gather(*(store(stores, number) for number in range(3)))

    run(main())

    channels = set()
    while len(channels) < 3:
        message = pubsub.get_message(timeout=60)
        if message:
            channels.add(message["channel"].decode()[-4:])
    pubsub.close()
    assert channels == {"id-0", "id-1", "id-2"}


def test_success_stays(app, run):
    """A result that is there is not overwritten: Celery's guard reads each one."""
    app.backend.mark_as_done("id-1", "first")

    async def main():
        async with stores_of(app) as stores:
            await asyncio.gather(*(store(stores, number) for number in range(3)))

    run(main())

    assert stored(app, range(3)) == [0, "first", 2]


def test_large_result(app, run):
    """A result that is larger than a socket's buffers."""
    text = "x" * 5_000_000

    async def main():
        async with stores_of(app) as stores:
            await asyncio.gather(store(stores, 1, text), store(stores, 2))

    run(main())

    assert stored(app, [1, 2]) == [text, 2]


def test_error_of_one(app, run):
    """What cannot be encoded fails alone, with Celery's error."""

    async def main():
        async with stores_of(app) as stores:
            return await asyncio.gather(
                *(store(stores, 1), store(stores, 2, object()), store(stores, 3)),
                return_exceptions=True,
            )

    errors = run(main())

    assert "not JSON serializable" in str(errors[1])
    assert stored(app, [1, 3]) == [1, 3]


def test_lost_connection(app, run):
    """What a cut leaves unanswered is done elsewhere; what comes later is done here again."""

    async def main():
        async with stores_of(app) as stores:
            await store(stores, 0)
            own = stores._connection
            cutter = app.backend.client
            [mine] = [
                other["id"]
                for other in cutter.client_list()
                if other["addr"].rpartition(":")[2] == str(own._sock.getsockname()[1])
            ]
            waiting = [asyncio.ensure_future(store(stores, number)) for number in range(1, 4)]
            await asyncio.sleep(0)
            cutter.client_kill_filter(_id=mine)
            answers = await asyncio.gather(*waiting, return_exceptions=True)
            again = await asyncio.gather(*(store(stores, n) for n in range(4, 8)))
            return answers, again, stores.counters()

    answers, again, counters = run(main())

    lost = sum(isinstance(answer, Elsewhere) for answer in answers)
    assert set(map(type, answers)) <= {type(None), Elsewhere, int}
    assert len(again) == 4
    assert counters["redis_elsewhere"] == lost
    assert counters["redis_results"] == 1 + (3 - lost) + 4
    assert stored(app, range(4, 8)) == [4, 5, 6, 7]


def test_refusal(app, run):
    """What Redis refuses is left to the real backend, which knows what to do about it."""
    client = app.backend.client
    client.lpush(app.backend.get_key_for_task("id-1"), "no string")

    async def main():
        async with stores_of(app) as stores:
            with pytest.raises(Elsewhere):
                await store(stores, 1)
            await store(stores, 2)
            return stores.counters()

    counters = run(main())

    assert (counters["redis_results"], counters["redis_elsewhere"]) == (1, 1)
    assert stored(app, [2]) == [2]


def test_no_server(run):
    """Without Redis every result is left to the real backend, and nothing waits."""
    with RedisServer() as server:
        app = new_app(server.url)
    app.backend.client.connection_pool.disconnect()

    async def main():
        async with stores_of(app) as stores:
            return await asyncio.gather(
                *(store(stores, number) for number in range(3)), return_exceptions=True
            )

    assert [type(error) for error in run(main())] == [Elsewhere] * 3


def test_silent_server(run):
    """A Redis that does not reply within ``redis_socket_timeout`` is given up."""

    async def main(app, pid):
        async with stores_of(app) as stores:
            await store(stores, 0)
            os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises(Elsewhere):
                    await store(stores, 1)
            finally:
                os.kill(pid, signal.SIGCONT)
            await store(stores, 2)

    with RedisServer() as server:
        app = new_app(server.url, redis_socket_timeout=1.0)
        run(main(app, server.pid))
        assert stored(app, [0, 2]) == [0, 2]


class SocketRedis(RedisServer):
    """A Redis that listens in its folder, too."""

    def _command(self):
        return [*super()._command(), "--unixsocket", str(self.folder / "socket")]


def test_unix_socket(run):
    """A Redis without a port."""
    with SocketRedis() as server:
        app = new_app(f"redis+socket://{server.folder}/socket")

        async def main():
            async with stores_of(app) as stores:
                await asyncio.gather(*(store(stores, number) for number in range(3)))
                return stores.counters()["redis_results"]

        assert run(main()) == 3
        assert stored(app, range(3)) == [0, 1, 2]


def test_cancelled_job(app, run):
    """One that is cancelled while the connection is made does not take it from the others."""

    async def main():
        async with stores_of(app) as stores:
            first = asyncio.ensure_future(store(stores, 1))
            second = asyncio.ensure_future(store(stores, 2))
            await asyncio.sleep(0)
            first.cancel()
            await second
            return first.cancelled()

    assert run(main())
    assert stored(app, [1, 2]) == [None, 2]


def test_nothing_is_kept(app, run):
    """A result that is stored is not kept alive, by the timer for Redis' reply neither."""

    class Value(dict):
        pass

    async def main():
        async with stores_of(app) as stores:
            value = Value(a=1)
            gone = weakref.ref(value)
            await store(stores, 1, value)
            del value
            gc.collect()
            return gone() is None

    assert run(main())


def test_other_thread(app, run):
    """Code of a thread, or of no tracer, is not served here: it may use what it likes."""

    async def main():
        async with stores_of(app) as stores:
            call = functools.partial(stores.call, "mark_as_done", "id-1", 1)
            with pytest.raises(Elsewhere):
                call()
            caught = []

            def in_thread():
                try:
                    call()
                except Elsewhere as exc:
                    caught.append(exc)

            thread = threading.Thread(target=in_thread)
            thread.start()
            thread.join()
            return len(caught)

    assert run(main()) == 1


@pytest.mark.parametrize("backend", ["rpc://", "cache+memory://", "file:///tmp", None])
def test_other_backends(backend):
    """Only Celery's own Redis backends are spoken to in this way."""
    app = Celery("other", broker="memory://", backend=backend, set_as_current=False)

    assert not can_store(app.backend)


def test_subclass(app):
    """A backend that somebody has made of Celery's may block: it stays in threads."""
    own = type("Own", (type(app.backend),), {})

    assert can_store(app.backend)
    assert not can_store(own(app=app, url=app.conf.result_backend))
