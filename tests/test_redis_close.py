"""celery_asyncpool/redis_close.py: a Redis channel that is closed twice."""

from __future__ import annotations

import pytest
from kombu import Connection
from kombu.transport import redis

from celery_asyncpool.redis_close import survive_second_close


@pytest.fixture
def patched(monkeypatch):
    monkeypatch.setattr(redis.Channel, "_connparams", redis.Channel._connparams)
    survive_second_close()


def test_second_close_is_a_connection_error(patched, redis_url):
    """What Celery then sees is a connection that is lost, which it knows how to renew."""
    with Connection(redis_url) as connection:
        channel = connection.default_channel
        assert channel._connparams()["host"] == "127.0.0.1"

        channel.connection.client = None

        with pytest.raises(connection.connection_errors):
            channel._connparams()


def test_once_is_enough(patched):
    """A second worker in the same process wraps nothing twice."""
    before = redis.Channel._connparams

    survive_second_close()

    assert redis.Channel._connparams is before
