"""The broker of a soak, behind a proxy, and the Redis that keeps the results."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import redis

from ..chaos.proxy import Proxy
from ..servers import RabbitMQServer, RedisServer


@dataclass
class Brokers:
    """What has been started.

    Attributes:
        proxy: what stands before the broker.
        near: the transport of the worker, through the proxy.
        direct: the transport of the client, which is never cut.
    """

    proxy: Proxy
    near: Any
    direct: Any
    _rabbitmq: RabbitMQServer | None

    def count_messages(self) -> tuple[int, int]:
        """How many messages wait in the queue, and how many are not acknowledged."""
        if self._rabbitmq is None:
            with redis.Redis.from_url(self.direct.broker) as client:
                return client.llen(self.direct.queue), client.hlen("unacked")
        columns = ("name", "messages_ready", "messages_unacknowledged")
        for line in self._rabbitmq.ctl("-q", "list_queues", *columns).splitlines():
            name, *counts = line.split()
            if name == self.direct.queue:
                ready, unacknowledged = map(int, counts)
                return ready, unacknowledged
        raise LookupError(f"no queue {self.direct.queue}")


@contextlib.contextmanager
def start_brokers(name: str, transport_class: Any) -> Iterator[Brokers]:
    """Start the servers and the proxy; they are stopped at the end of the `with` block."""
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(RedisServer())
        rabbitmq = None
        if name == "rabbitmq":
            rabbitmq = stack.enter_context(RabbitMQServer())
            broker, port = rabbitmq.url, rabbitmq.port
        else:
            server = stack.enter_context(RedisServer())
            broker, port = f"{server.url}/0", server.port
        proxy = stack.enter_context(Proxy(port))
        direct = transport_class(name, broker, f"{backend.url}/1")
        near = replace(direct, broker=proxy.before(broker))
        yield Brokers(proxy, near, direct, rabbitmq)
