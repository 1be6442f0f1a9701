"""kombu's Redis transport, made faster in the worker's main process.

For each message that is received, and for each that is acknowledged, kombu
makes a new client (with redis-py 8 a fifth of what the main process does) and
a round trip. Here a channel keeps its client, and the acknowledgements that
come up within a block leave together at its end.
"""

from __future__ import annotations

import functools
import sys
import threading
from typing import Any

from celery.utils.log import get_logger
from kombu.transport.virtual.base import QoS as VirtualQoS

__all__ = ["AcksTogether", "keep_clients"]

logger = get_logger(__name__)


def keep_clients() -> None:
    """Let each channel keep its client, in this process; harmless when repeated.

    Does nothing where kombu's Redis transport is not in use.
    """
    transport = sys.modules.get("kombu.transport.redis")
    if transport is not None and not hasattr(transport.Channel._create_client, "__wrapped__"):
        transport.Channel._create_client = _kept(transport.Channel._create_client)


def _kept(create: Any) -> Any:
    @functools.wraps(create)
    def _create_client(channel: Any, asynchronous: bool = False) -> Any:
        if asynchronous:
            return create(channel, asynchronous)  # these hold a connection of their own
        client = getattr(channel, "_asyncpool_client", None)
        # After a loss of the connection the channel has another pool.
        if client is None or client.connection_pool is not channel.pool:
            client = channel._asyncpool_client = create(channel)
        return client

    return _create_client


class AcksTogether:
    """A block in which messages are acknowledged to Redis together, at its end.

    Other transports are not concerned. May be entered again while it is
    entered: the outermost block counts.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._thread = 0
        self._tags: dict[Any, list[Any]] = {}
        self._original: Any = None
        self._install()

    def __enter__(self) -> None:
        self._depth += 1
        self._thread = threading.get_ident()

    def __exit__(self, *exc_info: object) -> None:
        self._depth -= 1
        if not self._depth and self._tags:
            tags, self._tags = self._tags, {}
            for qos, delivery_tags in tags.items():
                self._ack(qos, delivery_tags)

    def _install(self) -> None:
        transport = sys.modules.get("kombu.transport.redis")
        if transport is not None:
            self._original = getattr(transport.QoS.ack, "__wrapped__", transport.QoS.ack)
            transport.QoS.ack = _deferred(self, self._original)

    def defer(self, qos: Any, delivery_tag: Any) -> bool:
        """Keep it for the end of the block; False where there is none."""
        if not self._depth or threading.get_ident() != self._thread:
            return False
        self._tags.setdefault(qos, []).append(delivery_tag)
        return True

    def _ack(self, qos: Any, delivery_tags: list[Any]) -> None:
        try:
            if len(delivery_tags) > 1:
                _remove(qos, delivery_tags)
                for delivery_tag in delivery_tags:
                    VirtualQoS.ack(qos, delivery_tag)
            else:
                self._original(qos, delivery_tags[0])
        except qos.channel.connection.connection_errors as exc:
            # As kombu does for one; the messages will come again.
            logger.critical("could not acknowledge %d messages: %r", len(delivery_tags), exc)


def _remove(qos: Any, delivery_tags: list[Any]) -> None:
    """Remove these messages from those that a worker has, in one round trip."""
    with qos.pipe_or_acquire() as pipe:
        pipe.zrem(qos.unacked_index_key, *delivery_tags)
        pipe.hdel(qos.unacked_key, *delivery_tags)
        pipe.execute()


def _deferred(block: AcksTogether, ack: Any) -> Any:
    @functools.wraps(ack)
    def deferring(qos: Any, delivery_tag: Any) -> None:
        if not block.defer(qos, delivery_tag):
            ack(qos, delivery_tag)

    return deferring
