"""Results for Redis: all that are there go in one round trip.

Celery's backend makes two round trips for each result, blocking. Here a single
thread makes the calls of many jobs at once: each runs in a greenlet, stops
where it wants something of Redis, and goes on with the reply when the commands
of all have been sent together. So the more a process has to store, the less
each result costs, in Redis as in here.

When such a round fails, as it does when the connection is lost, its calls are
made again by other threads, one by one, with Celery's own retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Any

import greenlet

from .threadpool import Outcome, ThreadPool
from .trace import call_in_thread

__all__ = ["RedisStores", "can_batch"]

#: Calls in one round, which holds up Redis for everybody.
MOST_AT_ONCE = 100

#: The commands that store a result.
STORES = frozenset({"SET", "SETEX", "PUBLISH"})

_Item = tuple["asyncio.Future[Outcome]", Callable[[], Any]]
#: As in a pipeline of redis-py: its arguments, and how its reply is parsed.
_Command = tuple[tuple[Any, ...], dict[str, Any]]
_Commands = list[_Command]


def can_batch(backend: Any) -> bool:
    """Whether *backend* is one whose calls :class:`RedisStores` can make."""
    try:
        from celery.backends.redis import RedisBackend
        from redis import Redis
    except ImportError:
        return False
    return isinstance(backend, RedisBackend) and isinstance(backend.client, Redis)


class RedisStores(ThreadPool):
    """One thread, for the calls of one app's Redis backend.

    Arguments:
        backend: returns the calling thread's own backend.
        others: the threads that make the calls of a round that has failed.
    """

    def __init__(self, backend: Callable[[], Any], others: ThreadPool) -> None:
        super().__init__(1, "asyncpool-redis")
        self._backend = backend
        self._others = others
        #: Calls of this turn of the loop, which wake the thread once.
        self._gathered: deque[_Item] = deque()
        self._batches: SimpleQueue[deque[_Item] | None] = SimpleQueue()
        self._calls_made = self._rounds = self._failed_rounds = 0

    def counters(self) -> dict[str, float]:
        """What ``inspect stats`` shows."""
        return {
            "redis_results": self._calls_made,
            "redis_rounds": self._rounds,
            "redis_failed_rounds": self._failed_rounds,
        }

    def submit(self, call: Callable[[], Any]) -> asyncio.Future[Outcome]:
        """As :meth:`ThreadPool.submit`, when this turn of the loop is over."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        if not self._gathered:
            loop.call_soon(self._send_batch)
        self._gathered.append((future, call))
        return future

    def _send_batch(self) -> None:
        batch, self._gathered = self._gathered, deque()
        self._pending += len(batch)
        self._batches.put(batch)
        self._start_thread()

    def stop(self) -> None:
        self._batches.put(None)
        super().stop()

    def _work(self) -> None:
        call_in_thread(self._make_calls)

    def _make_calls(self) -> None:
        """In the thread: make calls, as many at once as there are, until there is None."""
        line = _Line(batching(self._backend().client))
        waiting: deque[_Item] = deque()
        calls: dict[_Call, _Commands] = {}
        is_ending = False
        while not is_ending or waiting or calls:
            with contextlib.suppress(Empty):
                while not is_ending:
                    batch = self._next_batch(line, is_idle=not (waiting or calls))
                    is_ending = batch is None
                    waiting += batch or ()
            while waiting and len(calls) < MOST_AT_ONCE:
                self._go_on(calls, _Call(*waiting.popleft()))
            if calls:
                self._make_round(line, calls)

    def _next_batch(self, line: _Line, is_idle: bool) -> deque[_Item] | None:
        """Return the next calls; raises ``Empty`` where there are others to go on with."""
        try:
            return self._batches.get_nowait()
        except Empty:
            if not is_idle:
                raise
            line.hang_up()
            return self._batches.get()

    def _make_round(self, line: _Line, calls: dict[_Call, _Commands]) -> None:
        """Ask Redis what all *calls* want of it, and let each go on with its replies."""
        self._rounds += 1
        try:
            replies = line.ask(command for commands in calls.values() for command in commands)
        except Exception:
            self._failed_rounds += 1
            for call in list(calls):
                del calls[call]
                self._make_elsewhere(call)
            return
        of_next = iter(replies)
        for call, commands in list(calls.items()):
            del calls[call]
            self._go_on(calls, call, [next(of_next) for _ in commands])

    def _go_on(self, calls: dict[_Call, _Commands], call: _Call, *replies: list[Any]) -> None:
        """Run *call* to its end, or until it wants something of Redis."""
        commands = call.switch(*replies)
        if call.dead:
            self._calls_made += 1
            self._hand_over(call.future, call.outcome)
        else:
            calls[call] = commands

    def _make_elsewhere(self, call: _Call) -> None:
        while not call.dead:
            call.throw(_Broken)
        try:
            call.future.get_loop().call_soon_threadsafe(self._resubmit, call.future, call.function)
        except RuntimeError:
            return  # the loop has been closed: nobody waits any more

    def _resubmit(self, future: asyncio.Future[Outcome], function: Callable[[], Any]) -> None:
        """On the loop: have the call made by another thread."""
        self._pending -= 1
        if not future.cancelled():
            again = self._others.submit(function)
            again.add_done_callback(functools.partial(_pass_on, future))


def _pass_on(future: asyncio.Future[Outcome], again: asyncio.Future[Outcome]) -> None:
    if not future.cancelled():
        future.set_result(again.result())


class _Broken(BaseException):
    """Ends a call whose round has failed; it will be made again."""


class _Call(greenlet.greenlet):
    """The greenlet of one call."""

    def __init__(self, future: asyncio.Future[Outcome], function: Callable[[], Any]) -> None:
        super().__init__()
        self.future = future
        self.function = function
        self.outcome = Outcome(None, None)

    def run(self) -> None:
        """Make the call, unless nobody waits for it any more."""
        if self.future.cancelled():
            return
        try:
            self.outcome = Outcome(self.function(), None)
        except BaseException as exc:
            self.outcome = Outcome(None, exc)

    def ask(self, commands: _Commands) -> list[Any]:
        """From within the call: return the replies to *commands*, errors among them."""
        assert self.parent is not None
        replies: list[Any] = self.parent.switch(commands)
        return replies


class _Line:
    """A connection of a client, which is its pool's again while nobody asks."""

    def __init__(self, client: Any) -> None:
        from redis.exceptions import ResponseError  # where there is a client, there is redis

        self._client = client
        self._refused = ResponseError
        self._connection: Any = None

    def ask(self, commands: Iterable[_Command]) -> list[Any]:
        """Return the replies to *commands*, errors among them, in one round trip.

        A pipeline of redis-py does the same at twice the cost.
        """
        commands = list(commands)
        connection = self._connection = self._connection or self._take()
        try:
            packed = connection.pack_commands(args for args, _ in commands)
            connection.send_packed_command(packed)
            return [self._reply(connection, args[0], options) for args, options in commands]
        except BaseException:
            connection.disconnect()  # replies may be under way that nobody would read
            self.hang_up()
            raise

    def _reply(self, connection: Any, name: str, options: dict[str, Any]) -> Any:
        try:
            return self._client.parse_response(connection, name, **options)
        except self._refused as exc:
            return exc

    def _take(self) -> Any:
        pool = self._client.connection_pool
        try:
            return pool.get_connection()
        except TypeError:
            return pool.get_connection("SET")  # redis-py before 5.3 wants a name

    def hang_up(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            self._client.connection_pool.release(self._connection)
            self._connection = None


# The client of redis-py, in which calls stop.


def batching(client: Any) -> Any:
    """Make *client* one whose commands wait for a round, when a call wants them."""
    if not isinstance(client, _BatchingClient):
        client.__class__ = _mixed(_BatchingClient, client.__class__)
    return client


@functools.cache
def _mixed(mixin: type, cls: type) -> type:
    return type(cls.__name__, (mixin, cls), {})


def _current_call() -> _Call | None:
    current = greenlet.getcurrent()
    return current if isinstance(current, _Call) else None


class _BatchingClient:
    """Before ``redis.Redis`` in a class's bases."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        call = _current_call()
        if call is None:
            return super().execute_command(*args, **options)  # type: ignore[misc]
        [reply] = call.ask([(args, options)])
        if isinstance(reply, Exception):
            raise reply
        return reply

    def pipeline(self, *args: Any, **options: Any) -> Any:
        pipeline = super().pipeline(*args, **options)  # type: ignore[misc]
        pipeline.__class__ = _mixed(_BatchingPipeline, pipeline.__class__)
        return pipeline


class _BatchingPipeline:
    """Before ``redis.client.Pipeline`` in a class's bases."""

    command_stack: list[Any]
    transaction: bool

    def execute(self, raise_on_error: bool = True) -> Any:
        call = _current_call()
        real: Any = super()
        if call is None or self._needs_its_own_connection or not self.command_stack:
            return real.execute(raise_on_error)
        try:
            replies = call.ask(self.command_stack)
            if raise_on_error:
                real.raise_first_error(self.command_stack, replies)
            return replies
        finally:
            real.reset()

    @property
    def _needs_its_own_connection(self) -> bool:
        pipeline: Any = self
        if pipeline.watching or pipeline.explicit_transaction or pipeline.scripts:
            return True
        return self.transaction and not self._stores_a_result

    @property
    def _stores_a_result(self) -> bool:
        """Whether this is the backend's pipeline: a value, and the same to who waits for it.

        A transaction adds nothing to these two, and costs two more replies each.
        """
        return STORES.issuperset(args[0] for args, _ in self.command_stack)
