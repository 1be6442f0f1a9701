"""The client of all Celery pools: ``python -m benchmarks.celery_client``."""

from __future__ import annotations

import sys
from typing import Any

import redis

from .app import app
from .client import Client

__all__ = ["CeleryClient"]


class CeleryClient(Client):
    """Publishes to the queue *name*; each batch for later has a queue of its own."""

    def __init__(self, ledger: str, results: str, name: str) -> None:
        super().__init__(ledger, results, name)
        self._batches = 0
        self._producer: Any = app.producer_pool.acquire(block=True)
        self._backend: Any = app.backend
        url = app.conf.broker_url
        self._broker = redis.Redis.from_url(url) if url.startswith("redis:") else None

    def ping(self) -> bool:
        return bool(app.control.ping(destination=[self.name], timeout=0.5, limit=1))

    def publish(self, task: str, args: list[Any], later: bool, with_result: bool) -> Any:
        return (
            app.tasks[task]
            .apply_async(
                args,
                queue=self._later if later else self.name,
                producer=self._producer,
                ignore_result=not with_result,
            )
            .id
        )

    def release(self) -> bool:
        if self._broker is not None:
            # The worker waits at its queue, which is now full. Told to consume
            # another one, it would first wait there for up to a second, as
            # with RabbitMQ and gevent it does.
            self._broker.rename(self._later, self.name)
        else:
            self._consume()
        self._batches += 1
        return self._broker is not None

    def _consume(self) -> None:
        replies = app.control.add_consumer(
            self._later, destination=[self.name], reply=True, limit=1, timeout=30.0
        )
        if not replies or "ok" not in replies[0][self.name]:
            raise RuntimeError(f"the worker does not consume {self._later}: {replies!r}")

    @property
    def _later(self) -> str:
        return f"{self.name}.{self._batches}"

    def result_key(self, task_id: Any) -> str:
        key: bytes = self._backend.get_key_for_task(task_id)
        return key.decode()

    def decode(self, data: bytes) -> Any:
        meta = self._backend.decode_result(data)
        return meta["result"] if meta["status"] == "SUCCESS" else meta


if __name__ == "__main__":
    CeleryClient(*sys.argv[1:]).run()
