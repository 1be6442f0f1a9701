"""taskiq on a Redis list: the worker's broker, and the client of the benchmark."""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
from typing import Any

import redis
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

from benchmarks.bodies import ASYNC, SYNC
from benchmarks.client import Client

BROKER = os.environ["CELERY_BROKER_URL"]

broker = ListQueueBroker(BROKER, queue_name=os.environ["BENCHMARK_QUEUE"]).with_result_backend(
    RedisAsyncResultBackend(os.environ["CELERY_RESULT_BACKEND"], result_ex_time=3600)
)
tasks = {
    f"{form}.{name}": broker.register_task(body, task_name=f"{form}.{name}")
    for form, bodies in (("sync", SYNC), ("async", ASYNC))
    for name, body in bodies.items()
}


class TaskiqClient(Client):
    """Publishes to the list *name*, or to one that takes its name later."""

    def __init__(self, ledger: str, results: str, name: str) -> None:
        super().__init__(ledger, results, name)
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(broker.startup())
        self._broker = redis.Redis.from_url(BROKER)

    def publish(self, task: str, args: list[Any], later: bool, with_result: bool) -> Any:
        queue = f"{self.name}.later" if later else self.name
        kicker = tasks[task].kicker().with_labels(queue_name=queue)
        return self._loop.run_until_complete(kicker.kiq(*args)).task_id

    def release(self) -> bool:
        self._broker.rename(f"{self.name}.later", self.name)
        return True

    def result_key(self, task_id: Any) -> str:
        return str(task_id)

    def decode(self, data: bytes) -> Any:
        result = pickle.loads(data)
        return result if result["is_err"] else result["return_value"]


if __name__ == "__main__":
    TaskiqClient(*sys.argv[1:]).run()
