"""celery_asyncpool/prefetch.py: what the worker asks of the broker while tasks wait for caps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from kombu.common import QoS

from celery_asyncpool.prefetch import MOST_BEYOND, Prefetch


class Consumer:
    """What Celery's consumer is to us; *told* is what the broker has heard."""

    def __init__(self, prefetch: int = 10, *, has_hub: bool = True) -> None:
        self.task_consumer = SimpleNamespace(channel=None)
        self.hub = object() if has_hub else None
        self.told: list[int] = []
        self.reconnect(prefetch)

    def reconnect(self, prefetch: int) -> None:
        self.qos = QoS(self.tell, prefetch)
        self.qos.update()

    def tell(self, prefetch_count: int) -> None:
        self.told.append(prefetch_count)

    def turn(self) -> int:
        """One turn of Celery's loop; what the broker knows then."""
        if self.qos.prev != self.qos.value:
            self.qos.update()
        return self.told[-1]


@pytest.mark.parametrize("has_hub", [True, False], ids=["hub", "no hub"])
def test_broker_is_asked_for_more_while_tasks_wait(has_hub):
    """Each waiting task is one message more; at the end the number is as before."""
    consumer, prefetch = Consumer(10, has_hub=has_hub), Prefetch()
    told = []

    for waiting in (1, 2, 300, 299, 0):
        prefetch.on_waiting(consumer, waiting)
        told.append(consumer.turn())

    assert told == [11, 12, 310, 309, 10]
    assert consumer.qos.value == 10


def test_bound():
    """A backlog without end does not come into memory."""
    consumer, prefetch = Consumer(10), Prefetch()

    prefetch.on_waiting(consumer, 1_000_000)
    consumer.turn()
    count = len(consumer.told)
    prefetch.on_waiting(consumer, 999_999)
    consumer.turn()

    assert consumer.told[-1] == 10 + MOST_BEYOND
    assert len(consumer.told) == count


def test_most_that_can_be_said():
    """AMQP knows no larger number; more would mean: without bound."""
    consumer, prefetch = Consumer(65_500), Prefetch()

    prefetch.on_waiting(consumer, 500)

    assert consumer.turn() == 65_535


def test_prefetch_without_bound():
    """0 is no bound, and stays so."""
    consumer, prefetch = Consumer(0), Prefetch()

    prefetch.on_waiting(consumer, 5)

    assert consumer.turn() == 0


def test_celery_goes_on_with_its_own_number():
    """What Celery adds for an ETA, for a slot or after a reconnect is neither lost nor clamped."""
    consumer, prefetch = Consumer(10), Prefetch()
    prefetch.on_waiting(consumer, 5)

    consumer.qos.increment_eventually(4)
    raised = consumer.turn()
    prefetch.on_waiting(consumer, 0)

    assert raised == 19
    assert consumer.turn() == 14


def test_messages_that_come_with_the_answer():
    """RabbitMQ may deliver before it answers: then it is told again, at once."""
    consumer, prefetch = Consumer(10), Prefetch()
    told = []

    def tell(prefetch_count):
        told.append(prefetch_count)
        if len(told) < 4:
            prefetch.on_waiting(consumer, 3 * len(told))

    consumer.qos.callback = tell
    prefetch.on_waiting(consumer, 1)
    consumer.turn()

    assert told == [11, 13, 16, 19]


@pytest.mark.parametrize("has_hub", [True, False], ids=["hub", "no hub"])
def test_messages_before_the_consumer_is_known(has_hub):
    """What has waited before Celery said that it is ready counts."""
    consumer, prefetch = Consumer(10, has_hub=has_hub), Prefetch()
    prefetch.on_waiting(None, 4)
    consumer.reconnect(10)
    consumer.qos.prev = None  # not told yet

    prefetch.attach(consumer)

    assert consumer.turn() == 14


def test_messages_that_come_with_the_first_answer():
    """On a new connection the broker may deliver while it is asked for the first time."""
    consumer, prefetch = Consumer(10), Prefetch()
    consumer.qos = QoS(lambda prefetch_count: (consumer.tell(prefetch_count), deliver()), 6)

    def deliver():
        prefetch.on_waiting(consumer, 4)

    prefetch.attach(consumer)

    assert consumer.turn() == 10


def test_new_connection():
    """A new connection is asked for what waits then."""
    consumer, prefetch = Consumer(10), Prefetch()
    prefetch.on_waiting(consumer, 5)
    consumer.turn()

    prefetch.on_waiting(consumer, 0)
    consumer.reconnect(6)
    prefetch.on_waiting(consumer, 2)

    assert consumer.turn() == 8


@pytest.mark.parametrize("consumer", [None, SimpleNamespace(qos=None)])
def test_without_connection(consumer):
    """Where nothing is connected, nobody is asked."""
    Prefetch().on_waiting(consumer, 5)
