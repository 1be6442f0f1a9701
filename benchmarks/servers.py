"""The servers of a benchmark: private ones, with nothing else in them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from tests.servers import RabbitMQServer, RedisServer

from .harness import Servers
from .processes import helper
from .spin import spin

__all__ = ["calibrate", "started"]

#: Seconds that one direction to the far broker takes: 2 ms there and back.
ONE_WAY = 0.001
HTTP_SECONDS = 0.05
CPU_SECONDS = 0.003


class MemoryRedis(RedisServer):
    """A Redis that writes nothing to disk."""

    def _command(self) -> list[str]:
        return [*super()._command(), "--appendonly", "no"]


@contextlib.contextmanager
def started(broker: str, bodies: set[str]) -> Iterator[Servers]:
    """Run Redis, RabbitMQ where *broker* says so, the far network, and what *bodies* need."""
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(MemoryRedis())
        far_redis = stack.enter_context(helper("delay", redis.port, ONE_WAY))
        results = f"{redis.url}/1"
        far_results = f"redis://127.0.0.1:{far_redis}/1"
        url, far_url = f"{redis.url}/0", f"redis://127.0.0.1:{far_redis}/0"
        if broker == "rabbitmq":
            rabbitmq = stack.enter_context(RabbitMQServer())
            far = stack.enter_context(helper("delay", rabbitmq.port, ONE_WAY))
            url = rabbitmq.url
            far_url = f"amqp://guest:guest@127.0.0.1:{far}//"
        http = 0
        if "http" in bodies:
            http = stack.enter_context(helper("http_server", HTTP_SECONDS))
        yield Servers(
            broker=url,
            results=results,
            far_broker=far_url,
            far_results=far_results,
            names={
                "URL": f"http://127.0.0.1:{http}",
                "TURNS": calibrate(CPU_SECONDS),
                "DATA": "x" * 65536,
            },
        )


def calibrate(seconds: float) -> int:
    """Return how many turns of the body's loop take *seconds* of CPU on this machine."""
    turns = 10_000
    costs = []
    for _ in range(7):
        start = time.process_time()
        spin(turns)
        costs.append(time.process_time() - start)
    return round(turns * seconds / min(costs))
