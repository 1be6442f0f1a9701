"""arq: the functions and settings of its workers, and the client of the benchmark."""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import redis
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from arq.constants import result_key_prefix
from arq.worker import func

from benchmarks.bodies import ASYNC, SYNC
from benchmarks.client import Client

BROKER = os.environ["CELERY_BROKER_URL"]
SETTINGS = RedisSettings.from_dsn(BROKER)

#: Seconds that results are kept, and that a task may take.
KEPT, LONGEST = 3600, 3600
#: Seconds between two looks at the queue. By default half a second, which is then all
#: that one measures: each look takes no more tasks than there are free slots.
POLL = 0.01


def _async(body: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """As arq calls it: with a context first."""

    @functools.wraps(body)
    async def run(context: dict[Any, Any], *args: Any) -> Any:
        return await body(*args)

    return run


def _in_thread(body: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """As arq's documentation has it for blocking functions."""

    @functools.wraps(body)
    async def run(context: dict[Any, Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, body, *args)

    return run


class WorkerSettings:
    """What ``arq`` is given."""

    functions = [
        *(func(_async(body), name=f"async.{name}") for name, body in ASYNC.items()),
        *(func(_in_thread(body), name=f"sync.{name}") for name, body in SYNC.items()),
    ]
    redis_settings = SETTINGS
    queue_name = os.environ["BENCHMARK_QUEUE"]
    max_jobs = int(os.environ.get("BENCHMARK_SLOTS", "10"))
    poll_delay = POLL
    keep_result = KEPT
    job_timeout = LONGEST


class ArqClient(Client):
    """Publishes to the queue *name*, or to one that takes its name later."""

    def __init__(self, ledger: str, results: str, name: str) -> None:
        super().__init__(ledger, BROKER, name)  # arq keeps results beside its queue
        self._loop = asyncio.new_event_loop()
        self._pool: ArqRedis = self._loop.run_until_complete(create_pool(SETTINGS))
        self._broker = redis.Redis.from_url(BROKER)

    def publish(self, task: str, args: list[Any], later: bool, with_result: bool) -> Any:
        queue = f"{self.name}.later" if later else self.name
        job = self._loop.run_until_complete(self._pool.enqueue_job(task, *args, _queue_name=queue))
        assert job is not None
        return job.job_id

    def release(self) -> bool:
        self._broker.rename(f"{self.name}.later", self.name)
        return True

    def result_key(self, task_id: Any) -> str:
        return f"{result_key_prefix}{task_id}"

    def decode(self, data: bytes) -> Any:
        result = pickle.loads(data)
        return result["r"] if result["s"] else result


if __name__ == "__main__":
    ArqClient(*sys.argv[1:]).run()
