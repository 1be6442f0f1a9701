"""kombu's Redis transports, with batches."""

from __future__ import annotations

from typing import Any

import kombu.transport.redis

from .channel import Channel, SentinelChannel
from .ledger import Shared
from .poller import Poller

__all__ = ["SentinelTransport", "Transport", "ours_for"]

#: Its stubs know little of it.
kombu_redis: Any = kombu.transport.redis


class Transports:
    """What is added to kombu's transports."""

    #: A subclass for each worker has its own.
    shared = Shared()

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Live in Celery's hub."""
        self.cycle.loop = loop
        super().register_with_event_loop(connection, loop)  # type: ignore[misc]


class Transport(Transports, kombu_redis.Transport):  # type: ignore[misc]
    """kombu's Redis transport, with batches."""

    Channel = Channel


class SentinelTransport(Transports, kombu_redis.SentinelTransport):  # type: ignore[misc]
    """kombu's Sentinel transport, with batches."""

    Channel = SentinelChannel


def ours_for(stock: type) -> type | None:
    """Return our transport for kombu's; None for one that is not kombu's."""
    ours: dict[type, type] = {
        kombu_redis.Transport: Transport,
        kombu_redis.SentinelTransport: SentinelTransport,
    }
    return ours.get(stock)
