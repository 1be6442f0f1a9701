"""Publishing without blocking the loop.

A few threads call Celery's own blocking functions, with Celery's own pool of
producers, in a copy of the caller's context. The call returns when the broker
has the message: with ``confirm_publish`` in ``broker_transport_options``,
RabbitMQ has then confirmed it.

One coroutine's messages leave in its order, also when it was cancelled while
one of them was on its way. A cancelled call that had not begun sends nothing.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

from kombu.exceptions import OperationalError

from . import listeners
from .threads import CallThreads

__all__ = ["call_in_thread", "publish"]

T = TypeVar("T")

#: Celery's default ``broker_pool_limit``: more would only wait for a producer.
PUBLISH_THREADS = 10

#: Threads for the result backend: a broker that does not answer does not hold these up.
BACKEND_THREADS = 4

#: Seconds that the threads have beyond the connection timeout to say it themselves.
MARGIN = 1.0

#: A publish of this context that goes on although its caller was cancelled.
_unfinished: ContextVar[Future[Any] | None] = ContextVar(
    "celery_asyncpool_unfinished_publish", default=None
)


def _new_threads() -> None:
    global _threads, _backend_threads
    _threads = CallThreads(PUBLISH_THREADS, "asyncpool-publish")
    _backend_threads = CallThreads(BACKEND_THREADS, "asyncpool-backend")


_threads: CallThreads
_backend_threads: CallThreads
_new_threads()
os.register_at_fork(after_in_child=_new_threads)


async def publish(app: Any, call: Callable[[], T]) -> T:
    """Make *call*, which publishes with *app*, in a thread; return its value.

    Raises ``kombu.exceptions.OperationalError`` when there is no connection to
    the broker within ``broker_connection_timeout``.
    """
    publication = _Publication(app, call)
    future = await _submit(_threads, publication.run)
    try:
        return await _watch(future, publication)
    except asyncio.CancelledError:
        if not future.cancel():
            _unfinished.set(future)
        raise


async def call_in_thread(function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Call *function*, which may block, in order with what the caller publishes."""
    future = await _submit(_backend_threads, functools.partial(function, *args, **kwargs))
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        if not future.cancel():
            _unfinished.set(future)
        raise


async def _submit(threads: CallThreads, call: Callable[[], T]) -> Future[T]:
    while (before := _unfinished.get()) is not None:
        if not before.done():
            await asyncio.wait({asyncio.wrap_future(before)})
        _unfinished.set(None)
    return threads.submit(functools.partial(copy_context().run, call))


async def _watch(future: Future[T], publication: _Publication) -> T:
    """Wait for *future*, but not for a broker that does not answer."""
    waiter = asyncio.wrap_future(future)
    while True:
        done, _ = await asyncio.wait({waiter}, timeout=publication.patience)
        if done or publication.patience is None:
            return await waiter
        if time.monotonic() - _threads.last_return < publication.patience:
            continue  # a long queue that moves
        if not publication.give_up():
            continue
        future.cancel()
        # Nobody looks at what the thread says in the end.
        waiter.add_done_callback(_retrieve)
        raise publication.no_answer()


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


class _Publication:
    """One call that publishes, and how far it has got."""

    def __init__(self, app: Any, call: Callable[[], Any]) -> None:
        self.app = app
        self.call = call
        self.connected = False
        self._given_up = False
        self._lock = threading.Lock()
        self.timeout: float | None = app.conf.broker_connection_timeout or None

    @property
    def patience(self) -> float | None:
        return None if self.timeout is None or self.connected else self.timeout + MARGIN

    @property
    def broker(self) -> str:
        return str(self.app.connection_for_write().as_uri())

    def run(self) -> Any:
        """In a thread: connect, within the time that there is, and publish."""
        self._connect()
        listeners.expect_replies(self.app, self.timeout)
        with self._lock:
            if self._given_up:
                raise self.no_answer()
            self.connected = True
        value = self.call()
        listeners.expect_results(self.app, value)
        return value

    def give_up(self) -> bool:
        """Send nothing, as the caller is about to be told; False: too late for that."""
        with self._lock:
            self._given_up = not self.connected
            return self._given_up

    def no_answer(self) -> OperationalError:
        """What the caller is told."""
        return OperationalError(
            f"the broker {self.broker} does not answer: no connection within "
            f"{self.timeout:g} s (broker_connection_timeout)"
        )

    def _connect(self) -> None:
        conf = self.app.conf
        policy = conf.task_publish_retry_policy or {}
        with self.app.producer_or_acquire() as producer:
            connection = producer.connection
            if connection.connected:
                return
            try:
                connection.ensure_connection(
                    max_retries=policy.get("max_retries", 3) if conf.task_publish_retry else 1,
                    interval_start=policy.get("interval_start", 0),
                    interval_step=policy.get("interval_step", 0.2),
                    interval_max=policy.get("interval_max", 1),
                    timeout=self.timeout,
                )
            except OperationalError as exc:
                raise OperationalError(
                    f"no connection to the broker {self.broker}: {exc}"
                ) from exc
