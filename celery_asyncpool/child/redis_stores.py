"""Results for Redis, stored on the loop: those of one turn go out together.

Celery's backend makes two round trips for each result, blocking, each in one
of a few threads. Here the backend's own code runs in the tracer, on a client
that knows just what storing a result needs, waits without blocking, and shares
one connection between all tasks. Keys, formats, expiry and order are
Celery's, since it is Celery's code that makes them.

What goes wrong, or is not known here, is done again by the backend as ever, in
a thread, with Celery's own retries.
"""

from __future__ import annotations

import asyncio
from asyncio import Task
from contextvars import Context
from typing import Any

from celery.utils.log import get_logger

from ..core.resp import Refusal, Reply, encode
from .redis_line import RedisLine, open_line, take_connection
from .threadpool import ThreadPool
from .trace import Tracer, in_tracer

__all__ = ["Elsewhere", "RedisStores", "can_store"]

logger = get_logger(__name__)


class Elsewhere(BaseException):
    """This call has to be made by the real backend, in a thread.

    No ``Exception``: Celery would retry, and sleep, right here.
    """


def can_store(backend: Any) -> bool:
    """Whether *backend* is one whose code :class:`RedisStores` can run on the loop.

    Only Celery's own: others may do there what blocks.
    """
    try:
        from celery.backends.redis import RedisBackend, SentinelBackend
    except ImportError:
        return False
    return type(backend) in (RedisBackend, SentinelBackend) and hasattr(backend, "client")


class RedisStores:
    """One process's way to a Redis backend.

    To be used from one event loop's thread only.

    Arguments:
        backend: the real one, of this thread.
        threads: in which the connection is made.
    """

    def __init__(self, backend: Any, threads: ThreadPool) -> None:
        self._client = backend.client
        self._threads = threads
        self._line: RedisLine | None = None
        self._connection: Any = None
        self._opening: asyncio.Task[RedisLine | None] | None = None
        self._writes = 0
        self._results = 0
        self._elsewhere = 0
        #: Why nothing can be stored here; empty where it can.
        self.off_reason = ""
        self._backend = _twin(backend, _Client(self))

    def __repr__(self) -> str:
        return f"<RedisStores {self._line!r}>"

    def counters(self) -> dict[str, float]:
        """What ``inspect stats`` shows."""
        writes = self._writes + (self._line.writes if self._line is not None else 0)
        return {
            "redis_results": self._results,
            "redis_writes": writes,
            "redis_elsewhere": self._elsewhere,
        }

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """In a tracer: call the *method* of the backend, which stores one result.

        Raises :exc:`Elsewhere` where that cannot be done here.
        """
        if self.off_reason:
            raise Elsewhere
        try:
            value = getattr(self._backend, method)(*args, **kwargs)
        except Elsewhere:
            self._elsewhere += 1
            raise
        self._results += 1
        return value

    def ask(self, *commands: bytes) -> list[Reply]:
        """In a tracer: return the replies to *commands*; raises :exc:`Elsewhere`."""
        tracer = in_tracer()
        if tracer is None or self.off_reason:
            raise Elsewhere
        line = self._line
        if line is None or line.is_lost:
            line = self._wait_for_line(tracer)
        answer = tracer.wait(line.ask(*commands))
        if answer is None:
            raise Elsewhere
        for reply in answer:
            if isinstance(reply, Refusal):
                if reply.startswith("READONLY"):
                    line.close()  # no longer the master: the next one is another's
                raise Elsewhere  # where redis-py and Celery make of it what is right
        replies: list[Reply] = answer
        return replies

    def _wait_for_line(self, tracer: Tracer) -> RedisLine:
        if self._opening is None:
            # Of no job: it goes on when the one that needs it first is cancelled.
            # Not `create_task`: whatever makes the tasks of bodies has no say in ours.
            loop = asyncio.get_running_loop()
            self._opening = Task(self._open(), loop=loop, context=Context())
        line: RedisLine | None = tracer.wait(asyncio.shield(self._opening))
        if line is None:
            raise Elsewhere
        return line

    async def _open(self) -> RedisLine | None:
        """Connect; None where that fails, which the real backend will tell."""
        try:
            self._give_back()
            taken = await self._threads.submit(lambda: take_connection(self._client))
            self._connection = taken.get()
            self._line = await open_line(self._connection)
            if self._line is None:
                self.off_reason = "the connection is encrypted, or not redis-py's own"
                logger.info("results are stored one by one: %s", self.off_reason)
                self._give_back()
            return self._line
        except Exception as exc:
            logger.debug("no connection to Redis on the loop: %r", exc)
            return None
        finally:
            self._opening = None

    def _give_back(self) -> None:
        """Let redis-py have its connection again, which the next one is made of."""
        if self._line is not None:
            self._line.close()
            self._writes += self._line.writes
            self._line = None
        if self._connection is not None:
            self._connection.disconnect()
            self._client.connection_pool.release(self._connection)
            self._connection = None

    def stop(self) -> None:
        """End the connection."""
        self._give_back()


def _twin(backend: Any, client: _Client) -> Any:
    """Return a backend like *backend*, on another *client*.

    Not a copy in Python's sense: Celery's backends make new ones of that, for the
    current app.
    """
    cls: Any = type(backend)
    twin = cls.__new__(cls)
    twin.__dict__.update(backend.__dict__)
    twin.__dict__["client"] = client
    return twin


class _Client:
    """What a backend uses of redis-py's client to store a result."""

    def __init__(self, stores: RedisStores) -> None:
        self._stores = stores

    def get(self, key: str | bytes) -> Reply:
        [reply] = self._stores.ask(encode(("GET", key)))
        return reply

    def pipeline(self) -> _Pipeline:
        return _Pipeline(self._stores)

    def __getattr__(self, name: str) -> Any:
        raise Elsewhere


class _Pipeline:
    """The value, and the same to those who wait for it.

    No transaction, as redis-py makes one: it would add two replies to these
    two, and nothing else. Who is told has the value in the message.
    """

    def __init__(self, stores: RedisStores) -> None:
        self._stores = stores
        self._commands: list[bytes] = []

    def __enter__(self) -> _Pipeline:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._commands.clear()

    def set(self, key: str | bytes, value: str | bytes) -> None:
        self._commands.append(encode(("SET", key, value)))

    def setex(self, key: str | bytes, seconds: int, value: str | bytes) -> None:
        self._commands.append(encode(("SETEX", key, seconds, value)))

    def publish(self, channel: str | bytes, message: str | bytes) -> None:
        self._commands.append(encode(("PUBLISH", channel, message)))

    def execute(self) -> list[Reply]:
        return self._stores.ask(*self._commands)

    def __getattr__(self, name: str) -> Any:
        raise Elsewhere
