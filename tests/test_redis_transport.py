"""celery_asyncpool/redis_transport.py: clients that are kept, acks that leave together."""

import logging

import pytest
from kombu import Connection, Consumer, Queue

from celery_asyncpool.redis_transport import AcksTogether, keep_clients


@pytest.fixture
def transport():
    """kombu's, as it is again after the test."""
    import kombu.transport.redis as transport

    patch = pytest.MonkeyPatch()
    patch.setattr(transport.QoS, "ack", transport.QoS.ack)
    patch.setattr(transport.Channel, "_create_client", transport.Channel._create_client)
    yield transport
    patch.undo()


@pytest.fixture
def connection(redis_url, transport):
    with Connection(redis_url) as connection:
        connection.default_channel.client.flushdb()
        yield connection


def receive(connection, count):
    """Send *count* messages and receive them."""
    queue = Queue("acks")(connection.default_channel)
    queue.declare()
    with connection.Producer() as producer:
        for number in range(count):
            producer.publish(number, routing_key="acks")
    messages = []
    with Consumer(connection, [queue], on_message=messages.append):
        while len(messages) < count:
            connection.drain_events(timeout=60)
    return messages


def unacked(connection):
    """How many messages Redis keeps for a worker: in its index, and whole."""
    client = connection.default_channel.client
    return client.zcard("unacked_index"), client.hlen("unacked")


def transactions(connection):
    stats = connection.default_channel.client.info("commandstats")
    return stats.get("cmdstat_exec", {"calls": 0})["calls"]


def test_acks_leave_together(connection):
    """Ten messages are acknowledged in one round trip, at the end of the outermost block."""
    together = AcksTogether()
    messages = receive(connection, 10)
    before = transactions(connection)

    with together:
        with together:
            for message in messages:
                message.ack()
        assert unacked(connection) == (10, 10)

    assert unacked(connection) == (0, 0)
    assert transactions(connection) == before + 1
    qos = connection.default_channel.qos
    assert len(qos._delivered) == len(qos._dirty)


def test_ack_outside_of_a_block(connection):
    """It leaves at once, as ever."""
    AcksTogether()
    [message] = receive(connection, 1)

    message.ack()

    assert unacked(connection) == (0, 0)


def test_single_ack(connection):
    """Nor does one ack alone need more than it did."""
    together = AcksTogether()
    first, second = receive(connection, 2)

    with together:
        first.ack()

    assert unacked(connection) == (1, 1)
    second.ack()


def test_acks_of_a_block_that_fails(connection):
    """They leave all the same."""
    together = AcksTogether()
    messages = receive(connection, 2)

    with pytest.raises(KeyError), together:
        for message in messages:
            message.ack()
        raise KeyError

    assert unacked(connection) == (0, 0)


def test_lost_connection(connection, caplog):
    """That they could not leave is told, as kombu does; the messages are still there."""
    together = AcksTogether()
    messages = receive(connection, 3)
    qos = connection.default_channel.qos
    patch = pytest.MonkeyPatch()

    def fail(*args):
        raise ConnectionResetError("cut")

    patch.setattr("celery_asyncpool.redis_transport._remove", fail)
    with caplog.at_level(logging.CRITICAL), together:
        for message in messages:
            message.ack()
    patch.undo()

    assert "could not acknowledge 3 messages" in caplog.text
    assert unacked(connection) == (3, 3)
    assert len(qos._delivered) - len(qos._dirty) == 3


def test_the_newest_block_counts(connection):
    """A second pool in one process does not leave the first one's wrapper in place."""
    AcksTogether()
    together = AcksTogether()
    messages = receive(connection, 2)

    with together:
        for message in messages:
            message.ack()
        assert unacked(connection) == (2, 2)

    assert unacked(connection) == (0, 0)


def test_clients_are_kept(connection):
    """A channel has one client, until it has another pool of connections."""
    keep_clients()
    keep_clients()
    channel = connection.default_channel

    client = channel._create_client()
    assert channel._create_client() is client
    assert channel._create_client(asynchronous=True) is not client

    channel._disconnect_pools()
    assert channel._create_client() is not client
    assert channel._create_client().ping()
