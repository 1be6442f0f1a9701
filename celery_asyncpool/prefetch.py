"""Asks the broker for more, while tasks wait for their caps.

A task that waits for its cap keeps its message unacknowledged. Did it count for
the prefetch, then enough of them would leave no room for any other task. So the
broker is asked for as many messages more as tasks wait, as Celery does for tasks
with an ETA, but within a bound: what waits, waits in memory.

Celery's own number stays as it is, since Celery lowers, raises and restores it
for reasons of its own: ours is added where the number goes to the broker.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from celery.worker import state as worker_state

__all__ = ["MOST_BEYOND", "Prefetch"]

#: Messages more than the prefetch, at most.
MOST_BEYOND = 1000

#: The most that AMQP can say.
MOST = 0xFFFF


class Prefetch:
    """What one worker asks of the broker beyond Celery's prefetch."""

    def __init__(self) -> None:
        self.beyond = 0
        #: Celery's own record, a new one for each connection.
        self._qos: Any = None

    def attach(self, consumer: Any) -> None:
        """Celery's *consumer* is connected, perhaps anew.

        To be called before it is told of a message: with its first turn it asks
        the broker, and messages may come before the answer.
        """
        qos = getattr(consumer, "qos", None)
        if qos is not None and qos is not self._qos:
            self._qos = qos
            self._add_to(qos, consumer)

    def on_waiting(self, consumer: Any, waiting: int) -> None:
        """So many tasks wait for their caps now; *consumer* is Celery's.

        With a hub the broker is told at its next turn. Transports without one
        only write down a number, which may happen in any thread, and at once:
        Celery's own may not have its turn for two seconds.
        """
        self.attach(consumer)
        beyond = min(waiting, MOST_BEYOND)
        if beyond == self.beyond:
            return
        self.beyond = beyond
        if getattr(consumer, "qos", None) is None:
            return
        if consumer.hub is not None:
            consumer.qos.prev = None  # what Celery's loop compares, to know whether to tell
        else:
            consumer.qos.callback(prefetch_count=consumer.qos.value)

    def _add_to(self, qos: Any, consumer: Any) -> None:
        qos.callback = functools.partial(self._tell_broker, qos.callback)
        channel_qos: Any = getattr(consumer.task_consumer.channel, "qos", None)
        if "can_consume" in getattr(channel_qos, "__dict__", ()):
            channel_qos.can_consume = functools.partial(self._can_consume, consumer, channel_qos)

    def _tell_broker(self, tell: Callable[..., Any], prefetch_count: int) -> None:
        if not prefetch_count:  # no bound
            tell(prefetch_count=0)
            return
        told = None
        while told != self.beyond:  # the answer may have come behind more messages
            told = self.beyond
            tell(prefetch_count=min(prefetch_count + told, MOST))

    def _can_consume(self, consumer: Any, channel_qos: Any) -> bool:
        """In place of Celery's for ``worker_disable_prefetch``, which counts what waits too."""
        limit = getattr(consumer.controller, "max_concurrency", None)
        if len(worker_state.reserved_requests) - self.beyond >= (
            limit or consumer.pool.num_processes
        ):
            return False
        return bool(type(channel_qos).can_consume(channel_qos))
