"""The servers of a benchmark: private ones, with nothing else in them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from tests.servers import RabbitMQServer, RedisServer

from .harness import Servers
from .processes import helper
from .spin import spin

__all__ = ["calibrate", "far_url", "started"]

#: Seconds that each direction to and from the far servers takes.
ONE_WAY = 0.002
HTTP_SECONDS = 0.05
CPU_SECONDS = 0.003


class MemoryRedis(RedisServer):
    """A Redis that writes nothing to disk, with room for a connection of each task."""

    def _command(self) -> list[str]:
        return [*super()._command(), "--appendonly", "no", "--maxclients", "50000"]


@contextlib.contextmanager
def started(broker: str, bodies: set[str]) -> Iterator[Servers]:
    """Run Redis, the broker unless *broker* is a URL, the far network, and what *bodies* need."""
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(MemoryRedis())
        if broker == "redis":
            url = f"{redis.url}/0"
        elif broker == "rabbitmq":
            url = stack.enter_context(RabbitMQServer()).url
        else:
            url = broker
        results = f"{redis.url}/1"
        http = 0
        if "http" in bodies:
            http = stack.enter_context(helper("http_server", HTTP_SECONDS))
        yield Servers(
            broker=url,
            results=results,
            far_broker=_far(stack, url),
            far_results=_far(stack, results),
            names={
                "URL": f"http://127.0.0.1:{http}",
                "TURNS": calibrate(CPU_SECONDS),
                "DATA": "x" * 65536,
            },
        )


def _far(stack: contextlib.ExitStack, url: str) -> str:
    """Return a URL for the server at *url* that leads through a delay."""
    parts = urlsplit(url)
    port = parts.port or (6379 if parts.scheme == "redis" else 5672)
    host = parts.hostname or "127.0.0.1"
    return far_url(url, stack.enter_context(helper("delay", port, ONE_WAY, host)))


def far_url(url: str, port: int) -> str:
    """Return *url* with *port* of this machine in the place of its server."""
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user}{at}127.0.0.1:{port}").geturl()


def calibrate(seconds: float) -> int:
    """Return how many turns of the body's loop take *seconds* of CPU on this machine."""
    turns = 10_000
    costs = []
    for _ in range(7):
        start = time.process_time()
        spin(turns)
        costs.append(time.process_time() - start)
    return round(turns * seconds / min(costs))
