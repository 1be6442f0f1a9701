"""dramatiq on Redis with its asyncio middleware: the worker's actors, and the client."""

from __future__ import annotations

import os
import sys
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.encoder import JSONEncoder
from dramatiq.middleware.asyncio import AsyncIO
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.bodies import ASYNC, SYNC
from benchmarks.client import Client

BROKER = os.environ["CELERY_BROKER_URL"]
QUEUE = os.environ["BENCHMARK_QUEUE"].replace("@", "-")

#: Connections that the threads of one process may use at once; redis-py's default is 100.
MOST = 4096


def connect(url: str) -> redis.Redis:
    """Return a client with connections for all threads."""
    return redis.Redis(connection_pool=redis.ConnectionPool.from_url(url, max_connections=MOST))


backend = RedisBackend(client=connect(os.environ["CELERY_RESULT_BACKEND"]))
broker = RedisBroker(client=connect(BROKER))
broker.add_middleware(AsyncIO())
broker.add_middleware(Results(backend=backend, store_results=True))
dramatiq.set_broker(broker)
actors = {
    f"{form}.{name}": dramatiq.actor(
        body, actor_name=f"{form}.{name}", queue_name=QUEUE, max_retries=0
    )
    for form, bodies in (("sync", SYNC), ("async", ASYNC))
    for name, body in bodies.items()
}


class DramatiqClient(Client):
    """Publishes to a namespace that no worker looks at, and moves its keys later."""

    def __init__(self, ledger: str, results: str, name: str) -> None:
        super().__init__(ledger, results, name)
        self._broker = redis.Redis.from_url(BROKER)
        self._later = RedisBroker(url=BROKER, namespace="later", middleware=[])

    def publish(self, task: str, args: list[Any], later: bool, with_result: bool) -> Any:
        message = actors[task].message(*args)
        (self._later if later else broker).enqueue(message)
        return backend.build_message_key(message)

    def release(self) -> bool:
        with self._broker.pipeline() as pipe:  # a transaction
            pipe.rename(f"later:{QUEUE}.msgs", f"dramatiq:{QUEUE}.msgs")
            pipe.rename(f"later:{QUEUE}", f"dramatiq:{QUEUE}")
            pipe.execute()
        return True

    def result_key(self, task_id: Any) -> str:
        return str(task_id)

    def decode(self, data: bytes) -> Any:
        return JSONEncoder().decode(data)

    def _read(self, keys: list[str]) -> Any:
        with self.redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.lindex(key, 0)
            return pipe.execute()


if __name__ == "__main__":
    DramatiqClient(*sys.argv[1:]).run()
