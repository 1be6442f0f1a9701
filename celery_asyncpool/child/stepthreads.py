"""Threads for plain handlers and receivers of jobs that run on the loop.

A job borrows one for what comes before its body, and one for what comes after
it, so that these find each other's thread-locals, and gives it back in between.
At most *limit* are lent at a time.

With Django, a job whose steps before the body have used a connection keeps
that thread to its end: what they have chosen on the connection (a tenant, a
search path) holds in the body, and is nobody else's. Such threads are not
counted: there are as many as jobs of that kind.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from celery.utils.log import get_logger

__all__ = ["StepThread", "StepThreads"]

logger = get_logger(__name__)


class StepThread:
    """One thread, lent to one job at a time."""

    def __init__(self, number: int) -> None:
        self.executor = ThreadPoolExecutor(1, thread_name_prefix=f"asyncpool-handlers-{number}")
        #: Whether there are connections of Django's in it.
        self.is_used = False

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Call *function* in the thread."""
        return self.executor.submit(function, *args)

    def look_for_connections(self) -> None:
        """In the thread: see whether Django's ORM has been used."""
        if not self.is_used and (database := sys.modules.get("django.db")) is not None:
            self.is_used = bool(database.connections.all(initialized_only=True))


class StepThreads:
    """All such threads of one process.

    Arguments:
        limit: how many are lent at once; more jobs wait.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lent = asyncio.Semaphore(limit)
        #: Those that nobody has, without connections and with some.
        self._fresh: list[StepThread] = []
        self._used: list[StepThread] = []
        self._started = 0

    def __repr__(self) -> str:
        return f"<StepThreads {len(self._fresh) + len(self._used)} idle>"

    async def lease(self, is_fresh: bool) -> StepThread:
        """Borrow a thread; *is_fresh*: one without connections."""
        await self._lent.acquire()
        if not is_fresh and self._used:
            return self._used.pop()
        return self._take_fresh()

    def give_back(self, thread: StepThread) -> None:
        """Its job does not need it now; what it still runs comes before what is next."""
        if thread.is_used:
            thread.submit(_close_old_connections)
        self._put_aside(thread)
        self._lent.release()

    def keep(self) -> None:
        """A borrowed one stays with its job: it does not count any more."""
        self._lent.release()

    def take(self) -> StepThread:
        """A thread for a job to keep; from any thread."""
        thread = self._take_fresh()
        thread.is_used = True
        return thread

    def take_back(self, thread: StepThread) -> None:
        """The job that has kept it has ended; from any thread."""
        thread.submit(_forget_connections)
        thread.is_used = False
        self._put_aside(thread)

    def stop(self) -> None:
        """Close all connections; a call that runs is not waited for."""
        for thread in [*self._fresh, *self._used]:
            self._end(thread)
        self._fresh.clear()
        self._used.clear()

    def _take_fresh(self) -> StepThread:
        try:
            return self._fresh.pop()
        except IndexError:
            self._started += 1
            return StepThread(self._started)

    def _put_aside(self, thread: StepThread) -> None:
        idle = self._used if thread.is_used else self._fresh
        if len(idle) < self.limit:
            idle.append(thread)
        else:
            self._end(thread)

    def _end(self, thread: StepThread) -> None:
        if thread.is_used:
            thread.submit(_forget_connections)
        thread.executor.shutdown(wait=False)


def _close_old_connections() -> None:
    from django.db import close_old_connections

    try:
        close_old_connections()
    except Exception:
        logger.exception("Django could not close old connections")


def _forget_connections() -> None:
    """Close them and let go of them, with all that somebody may have set of them."""
    from django.db import connections

    for connection in connections.all(initialized_only=True):
        try:
            connection.close()
        except Exception:
            logger.exception("Django could not close a connection")
        del connections[connection.alias]
