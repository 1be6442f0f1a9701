"""The lifespans and signals of one worker process, in their order."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from celery.utils.log import get_logger

from ..lifespans import Home, LifespanError, lifespans_of
from ..signals import (
    asyncpool_process_started,
    asyncpool_process_stopped,
    asyncpool_process_stopping,
)

__all__ = ["ProcessLifespans"]

logger = get_logger(__name__)


class ProcessLifespans:
    """Opens what *app* wants for each process, and closes it.

    Arguments:
        app: the Celery app.
        is_copy: whether it is not the one that the project's modules know.
        hostname: the worker's node name, for the receivers of signals.
        timeout: seconds for each start and each end.
    """

    def __init__(self, app: Any, *, is_copy: bool, hostname: str, timeout: float) -> None:
        self._app = app
        self._hostname = hostname
        self._timeout = timeout
        self._lifespans = lifespans_of(app, is_copy=is_copy)

    async def open(self) -> None:
        """Start all but the lazy ones; raises :exc:`LifespanError`, with nothing left open."""
        home = Home(self._timeout)
        for lifespan in self._lifespans:
            lifespan.open(home)
        try:
            for lifespan in self._lifespans:
                if not lifespan.lazy:
                    await lifespan.start()
        except LifespanError:
            await self._close_all(self._deadline(self._timeout))
            raise
        await self._send(asyncpool_process_started, self._deadline(self._timeout))

    async def close(self, time_limit: float) -> None:
        """End them all within *time_limit* seconds; what takes longer is cancelled and named."""
        deadline = self._deadline(time_limit)
        await self._send(asyncpool_process_stopping, deadline)
        await self._close_all(deadline)
        await self._send(asyncpool_process_stopped, deadline)

    def _deadline(self, timeout: float) -> float:
        return asyncio.get_running_loop().time() + timeout

    async def _close_all(self, deadline: float) -> None:
        for lifespan in reversed(self._lifespans):
            await lifespan.close(max(deadline - asyncio.get_running_loop().time(), 0.0))

    async def _send(self, signal: Any, deadline: float) -> None:
        """Send *signal* and wait for its async receivers, one after the other."""
        answers = signal.send(sender=self._app, hostname=self._hostname, pid=os.getpid())
        for receiver, answer in answers:
            if not asyncio.iscoroutine(answer):
                continue
            try:
                async with asyncio.timeout_at(deadline):
                    await answer
            except Exception as exc:
                logger.error(
                    "receiver %r of %s raised %r", receiver, signal.name, exc, exc_info=exc
                )
