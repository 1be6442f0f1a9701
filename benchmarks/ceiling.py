"""A pool that completes every task at once, in the worker's main process.

What Celery's consumer can do at most: no pool is faster. No body runs and no
result is stored; each task is counted in the ledger, in order of arrival.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

from celery.concurrency.base import BasePool

from celery_asyncpool.redis_transport import RedisBatching

from .bodies import ledger

__all__ = ["BatchingPool", "Pool"]


class Pool(BasePool):
    """``CELERY_CUSTOM_WORKER_POOL=benchmarks.ceiling:Pool celery worker -P custom``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._numbers = itertools.count()

    def on_apply(  # type: ignore[override]
        self,
        target: Callable[..., Any],
        args: Any = (),
        kwargs: Any = None,
        *,
        callback: Callable[..., Any],
        accept_callback: Callable[..., Any],
        **options: Any,
    ) -> None:
        """Say that the task has started and has returned its number."""
        number = next(self._numbers)
        ledger.start(number)
        accept_callback(os.getpid(), ledger.started[number])
        callback((False, ledger.end(number), 0.0))


class BatchingPool(Pool):
    """The same on our Redis transport: ``benchmarks.ceiling:BatchingPool``."""

    def on_start(self) -> None:
        """Celery calls it before it connects to the broker."""
        RedisBatching().install(self.app)
