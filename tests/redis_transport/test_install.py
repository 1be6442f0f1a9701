"""celery_asyncpool/redis_transport: how a worker comes to use it, and who does not."""

from __future__ import annotations

import os

import pytest
from celery import Celery
from kombu.transport import redis as kombu_redis

from celery_asyncpool.redis_transport import RedisBatching
from celery_asyncpool.redis_transport.transport import SentinelTransport, Transport


@pytest.fixture
def app():
    return Celery(broker="redis://127.0.0.1:1", set_as_current=False)


@pytest.fixture
def batching(app):
    batching = RedisBatching()
    batching.install(app)
    yield batching
    batching.uninstall()


@pytest.mark.parametrize(
    ("url", "ours"),
    [
        ("redis://127.0.0.1:1", Transport),
        ("rediss://127.0.0.1:1", Transport),
        ("redis+socket:///nowhere", Transport),
        ("sentinel://127.0.0.1:1", SentinelTransport),
    ],
)
def test_connection_of_a_consumer(app, batching, url, ours):
    """It has our transport, of the same kind."""
    assert issubclass(app.connection_for_read(url).get_transport_cls(), ours)
    assert batching.info()["batching"]


def test_connection_of_a_producer(app, batching):
    """It stays kombu's."""
    assert app.connection_for_write().get_transport_cls() is kombu_redis.Transport


def test_another_broker(app, batching):
    """It stays kombu's, and the statistics say why there are no batches."""
    stock = app.connection_for_read("memory://").get_transport_cls()

    assert not issubclass(stock, Transport)
    assert batching.info()["reason"] == "the broker is not Redis"


def test_transport_of_another_project(app, batching):
    """One that builds on kombu's is left as it is."""

    class Own(kombu_redis.Transport):
        pass

    connection = app.connection_for_read()
    connection.transport_cls = Own

    assert connection.get_transport_cls() is Own
    assert batching.info()["reason"] == f"the transport is not kombu's own: {__name__}"


def test_failover_to_another_kind_of_broker(app, batching):
    """Each address gets the transport for it."""
    connection = app.connection_for_read("redis://127.0.0.1:1;memory://")
    assert issubclass(connection.get_transport_cls(), Transport)

    connection.switch("memory://")

    assert not issubclass(connection.get_transport_cls(), Transport)


def test_child(app, batching, monkeypatch):
    """A forked process inherits the app, and gets kombu's transport."""
    monkeypatch.setattr(batching, "_pid", os.getpid() + 1)

    assert app.connection_for_read().get_transport_cls() is kombu_redis.Transport


def test_off(app):
    """Nothing of it is in use."""
    batching = RedisBatching(is_on=False)
    batching.install(app)

    assert app.connection_for_read().get_transport_cls() is kombu_redis.Transport
    assert batching.info()["reason"] == "asyncpool_redis_batching is False"
    batching.uninstall()


def test_uninstall(app):
    """The app is as it was."""
    batching = RedisBatching()
    batching.install(app)
    batching.uninstall()
    batching.uninstall()

    assert "connection_for_read" not in vars(app)


def test_uninstall_by_an_earlier_worker(app, batching):
    """The later one's transport stays."""
    later = RedisBatching()
    later.install(app)

    batching.uninstall()

    assert issubclass(app.connection_for_read().get_transport_cls(), Transport)
    later.uninstall()


def test_each_worker_has_its_own_statistics(app, batching):
    """Two in one process do not share them."""
    ours = app.connection_for_read().get_transport_cls()
    RedisBatching().install(app)
    other = app.connection_for_read().get_transport_cls()

    assert ours.shared is not other.shared
