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

    def on_waiting(self, consumer: Any, waiting: int) -> None:
        """So many tasks wait for their caps now; *consumer* is Celery's.

        Tells the broker soon: from the main thread, at its next turn.
        """
        beyond = min(waiting, MOST_BEYOND)
        qos = getattr(consumer, "qos", None)
        if qos is None or (beyond == self.beyond and qos is self._qos):
            return
        self.beyond = beyond
        if qos is not self._qos:
            self._qos = qos
            self._add_to(qos, consumer)
        if consumer.hub is not None:
            qos.prev = None  # what Celery's loop compares, to know whether to tell
        else:
            consumer.call_soon(_tell, qos)

    def _add_to(self, qos: Any, consumer: Any) -> None:
        qos.callback = functools.partial(self._tell_broker, qos.callback)
        if consumer.app.conf.get("worker_disable_prefetch"):
            channel_qos: Any = getattr(consumer.task_consumer.channel, "qos", None)
            if hasattr(channel_qos, "can_consume"):
                channel_qos.can_consume = functools.partial(
                    self._can_consume, consumer, channel_qos
                )

    def _tell_broker(self, tell: Callable[..., Any], prefetch_count: int) -> None:
        if prefetch_count:  # 0: no bound
            prefetch_count = min(prefetch_count + self.beyond, MOST)
        tell(prefetch_count=prefetch_count)

    def _can_consume(self, consumer: Any, channel_qos: Any) -> bool:
        """``worker_disable_prefetch``, for which Celery counts what waits as running."""
        limit = getattr(consumer.controller, "max_concurrency", None)
        if len(worker_state.reserved_requests) - self.beyond >= (
            limit or consumer.pool.num_processes
        ):
            return False
        return bool(type(channel_qos).can_consume(channel_qos))


def _tell(qos: Any) -> None:
    """Tell the broker now, whatever it was told before."""
    qos.prev = None
    qos.update()
