"""kombu's record of what is unacknowledged, over batches."""

from __future__ import annotations

from typing import Any

import kombu.transport.redis
from kombu.transport.virtual.base import QoS as VirtualQoS

__all__ = ["QoS"]

#: Its stubs know little of it.
kombu_redis: Any = kombu.transport.redis


class QoS(kombu_redis.QoS):  # type: ignore[misc]
    """kombu's, which does not store what is stored, and acknowledges in batches."""

    channel: Any

    def append(self, message: Any, delivery_tag: str) -> None:
        """kombu has got *message*."""
        if self.channel.ledger.hold(delivery_tag):
            VirtualQoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message, soon."""
        if self.channel.ledger.ack(delivery_tag):
            VirtualQoS.ack(self, delivery_tag)
            self.channel.on_ack()
        else:
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give a message back to its queue, or drop it, which is an ack to Redis."""
        if requeue:
            self.channel.ledger.forget(delivery_tag)
            super().reject(delivery_tag, requeue=True)
        else:
            self.ack(delivery_tag)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Give back what is unacknowledged, at the end."""
        self.channel.settle()
        super().restore_unacked_once(stderr)

    def restore_unacked(self, client: Any = None) -> None:
        """Give back all that kombu has."""
        super().restore_unacked(client)
        self.channel.ledger.forget_held()
