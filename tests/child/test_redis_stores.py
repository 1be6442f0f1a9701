"""celery_asyncpool/child/redis_stores.py: many results in one round trip, on a real Redis."""

import asyncio
import functools
import threading
from contextvars import ContextVar, copy_context

import pytest
from celery import Celery

from celery_asyncpool.child.redis_stores import MOST_AT_ONCE, RedisStores, can_batch
from celery_asyncpool.child.threadpool import ThreadPool

# Celery uses it, redis-py wants it no more.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex")

who = ContextVar("who", default="nobody")


@pytest.fixture
def app(redis_url):
    app = Celery("stores", broker="memory://", backend=redis_url, set_as_current=False)
    app.backend.client.flushdb()
    return app


@pytest.fixture
def run(app):
    """Make calls that are all there before the first begins; return their outcomes."""

    async def main(functions):
        begin = threading.Event()
        others = ThreadPool(4, "others")
        stores = RedisStores(lambda: begin.wait() and app.backend, others)
        futures = [stores.submit(function) for function in functions]
        begin.set()
        try:
            return [await future for future in futures]
        finally:
            stores.stop()
            others.stop()

    return lambda functions: asyncio.run(main(functions))


@pytest.fixture
def round_trips(app):
    """How often Redis has read from its clients in the test."""
    client = app.backend.client
    client.config_resetstat()
    return lambda: client.info("stats")["total_reads_processed"]


def store(app, number):
    return lambda: app.backend.mark_as_done(f"id-{number}", number)


def stored(app, numbers):
    return [app.AsyncResult(f"id-{number}").result for number in numbers]


def test_results_share_round_trips(app, run, round_trips):
    """50 results are written, and published, in a few round trips."""
    outcomes = run([store(app, number) for number in range(50)])

    # One that reads, one that writes; and what makes the connection and asks for this number.
    assert round_trips() <= 10
    assert [outcome.get() for outcome in outcomes] == [None] * 50
    assert stored(app, range(50)) == list(range(50))


def test_no_round_is_too_big(app, run, monkeypatch):
    """More results than one round may have take turns."""
    count, rounds = 3 * MOST_AT_ONCE, []
    make_round = RedisStores._make_round

    def counting(self, line, calls):
        rounds.append(len(calls))
        make_round(self, line, calls)

    monkeypatch.setattr(RedisStores, "_make_round", counting)
    run([store(app, number) for number in range(count)])

    assert stored(app, range(count)) == list(range(count))
    assert max(rounds) == MOST_AT_ONCE


def test_waiters_are_told(app, run):
    """Each result is published where Celery's clients listen."""
    pubsub = app.backend.client.pubsub(ignore_subscribe_messages=True)
    pubsub.psubscribe("*id-*")
    run([store(app, number) for number in range(3)])

    channels = set()
    while len(channels) < 3:
        message = pubsub.get_message(timeout=60)
        if message:
            channels.add(message["channel"].decode()[-4:])
    pubsub.close()
    assert channels == {"id-0", "id-1", "id-2"}


def test_success_stays(app, run):
    """A result that is there is not overwritten: the guard of Celery's reads each one."""
    app.backend.mark_as_done("id-1", "first")

    run([store(app, number) for number in range(3)])

    assert stored(app, range(3)) == [0, "first", 2]


def test_error_of_one_call(app, run):
    """What cannot be encoded fails alone."""
    calls = [store(app, 1), lambda: app.backend.mark_as_done("id-2", object()), store(app, 3)]

    outcomes = run(calls)

    with pytest.raises(Exception, match="not JSON serializable"):
        outcomes[1].get()
    assert stored(app, [1, 3]) == [1, 3]


def test_error_of_one_command(app, run):
    """What Redis refuses is raised where it was asked for."""
    client = app.backend.client
    client.set("text", "abc")

    outcomes = run([lambda: client_of(app).incr("text"), lambda: client_of(app).incr("number")])

    with pytest.raises(Exception, match="not an integer"):
        outcomes[0].get()
    assert outcomes[1].get() == 1


def client_of(app):
    return app.backend.client


def test_lost_connection(app, run):
    """Results of a round whose connection Redis cuts are stored all the same, each by itself."""
    cuts = []

    def cut():
        cuts.append(threading.current_thread().name)
        if len(cuts) == 1:
            own = str(client_of(app).client_id())
            client_of(app).execute_command("CLIENT", "KILL", "ID", own, "SKIPME", "no")

    stores = [store(app, number) for number in range(20)]
    outcomes = run([*stores[:10], cut, *stores[10:]])

    assert [outcome.get() for outcome in outcomes] == [None] * 21
    assert stored(app, range(20)) == list(range(20))
    assert [name.split("_")[0] for name in cuts] == ["asyncpool-redis", "others"]


def test_counters(app):
    """What is shown of it: results, round trips, and those that failed."""

    async def main():
        others = ThreadPool(1, "others")
        stores = RedisStores(lambda: app.backend, others)
        for number in range(3):
            await stores.submit(store(app, number))
        stores.stop()
        return stores.counters()

    # Each reads first whether there is a result already.
    expected = {"redis_results": 3, "redis_rounds": 6, "redis_failed_rounds": 0}
    assert asyncio.run(main()) == expected


def test_each_call_has_its_context(app, run):
    """Calls of one round do not see each other's variables."""

    def call(name):
        who.set(name)
        before = who.get()
        app.backend.client.get("any")
        return before, who.get()

    outcomes = run([functools.partial(copy_context().run, call, name) for name in "abc"])

    assert [outcome.get() for outcome in outcomes] == [(name, name) for name in "abc"]


def test_cancelled_call_is_not_made(app):
    """Nobody waits for it any more."""

    async def main():
        begin = threading.Event()
        others = ThreadPool(1, "others")
        stores = RedisStores(lambda: begin.wait() and app.backend, others)
        cancelled, kept = stores.submit(store(app, 1)), stores.submit(store(app, 2))
        cancelled.cancel()
        begin.set()
        await kept
        stores.stop()

    asyncio.run(main())

    assert stored(app, [1, 2]) == [None, 2]


def test_other_threads_use_the_client_as_ever(app, run):
    """The client of the thread's backend can be used outside of its calls."""
    run([store(app, 1)])

    client = app.backend.client
    with client.pipeline() as pipe:
        assert pipe.set("a", 1).get("a").execute() == [True, b"1"]


@pytest.mark.parametrize("backend", ["rpc://", "cache+memory://", "file:///tmp", None])
def test_other_backends(backend):
    """Only Redis is spoken to in this way."""
    app = Celery("other", broker="memory://", backend=backend, set_as_current=False)

    assert not can_batch(app.backend)
