"""Connections with and without batches to one Redis, and what they leave there."""

from __future__ import annotations

import base64
import contextlib
import json

import pytest
import redis as redis_client
from kombu import Connection, Consumer, Queue

from celery_asyncpool.redis_transport import batched
from celery_asyncpool.redis_transport.ledger import Shared

#: A database that no other test uses.
DATABASE = 8


@pytest.fixture
def url(redis_url):
    """An empty database."""
    return f"{redis_url}/{DATABASE}"


@pytest.fixture
def redis(url):
    """A plain client of it."""
    with redis_client.Redis.from_url(url) as client:
        client.flushdb()
        yield client


@pytest.fixture
def connect(url, redis):
    """Makes connections; they are closed at the end, if they are not yet."""
    connections = []

    def connect(shared=None, url=url, **options):
        connection = Connection(url, transport_options=options)
        if shared is not False:
            connection = batched(connection, shared or Shared())
        connections.append(connection)
        return connection

    yield connect
    for connection in connections:
        connection.close()


class Receiver:
    """A consumer of some queues, and what it has got."""

    def __init__(self, connection, *queues, prefetch=0, no_ack=False):
        self.channel = connection.channel()
        self.connection = connection
        self.messages = []
        self.channel.basic_qos(0, prefetch, False)
        self.consumer = Consumer(
            self.channel,
            [declare(self.channel, queue) for queue in queues],
            on_message=self.messages.append,
            no_ack=no_ack,
        )
        self.consumer.consume()

    @property
    def payloads(self):
        return [message.payload for message in self.messages]

    def drain(self, count):
        """Go on until there are *count* messages in all."""
        while len(self.messages) < count:
            self.connection.drain_events(timeout=60)
        return self.payloads

    def turn(self):
        """Let what is under way go on for a moment."""
        with contextlib.suppress(TimeoutError):
            self.connection.drain_events(timeout=0.05)

    def settle(self, ready):
        """Turns until *ready*."""
        while not ready():
            self.turn()


def declare(channel, name):
    queue = Queue(name, routing_key=name)(channel)
    queue.declare()
    return queue


def publish(connection, queue, *payloads, **options):
    with connection.channel() as channel:
        declare(channel, queue)
        with connection.Producer(channel) as producer:
            for payload in payloads:
                producer.publish(payload, routing_key=queue, **options)


def payload(message):
    """What was published, of a message as it is in Redis."""
    body = base64.b64decode(message["body"]).decode()
    return json.loads(body) if message["content-type"] == "application/json" else body


def unacked(redis, prefix=""):
    """The payloads that Redis keeps for a worker, sorted."""
    stored = redis.hgetall(f"{prefix}unacked")
    assert set(stored) == set(redis.zrange(f"{prefix}unacked_index", 0, -1))
    return sorted((payload(json.loads(raw)[0]) for raw in stored.values()), key=str)


def ready(redis, queue):
    """The payloads in one list, the next one first."""
    return [payload(json.loads(raw)) for raw in reversed(redis.lrange(queue, 0, -1))]
