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

_Item = tuple["asyncio.Future[Outcome]", Callable[[], Any]]


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
        client = batching(self._backend().client)
        waiting: deque[_Item] = deque()
        calls: dict[_Call, _Question] = {}
        is_ending = False
        while not is_ending or waiting or calls:
            with contextlib.suppress(Empty):
                while not is_ending:
                    batch = self._batches.get(block=not (waiting or calls))
                    is_ending = batch is None
                    waiting += batch or ()
            while waiting and len(calls) < MOST_AT_ONCE:
                self._go_on(calls, _Call(*waiting.popleft()))
            if calls:
                self._make_round(client, calls)

    def _make_round(self, client: Any, calls: dict[_Call, _Question]) -> None:
        """Ask Redis what all *calls* want of it, and let each go on with its replies."""
        try:
            replies = _ask(client, calls.values())
        except Exception:
            for call in list(calls):
                del calls[call]
                self._make_elsewhere(call)
            return
        for call, reply in zip(list(calls), replies, strict=True):
            del calls[call]
            self._go_on(calls, call, reply)

    def _go_on(self, calls: dict[_Call, _Question], call: _Call, *replies: list[Any]) -> None:
        """Run *call* to its end, or until it wants something of Redis."""
        question = call.switch(*replies)
        if call.dead:
            self._hand_over(call.future, call.outcome)
        else:
            calls[call] = question

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


class _Question:
    """What a call wants of Redis: commands with their options."""

    __slots__ = ("commands", "is_transaction")

    def __init__(self, commands: list[Any], is_transaction: bool) -> None:
        self.commands = commands
        self.is_transaction = is_transaction


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

    def ask(self, commands: list[Any], is_transaction: bool) -> list[Any]:
        """From within the call: return the replies to *commands*, errors among them."""
        assert self.parent is not None
        replies: list[Any] = self.parent.switch(_Question(commands, is_transaction))
        return replies


def _ask(client: Any, questions: Iterable[_Question]) -> list[list[Any]]:
    """Return the replies to each of *questions*, in one round trip."""
    questions = list(questions)
    # One transaction for all: each is one then, and nobody sees the half of it.
    pipeline = client.pipeline(transaction=any(question.is_transaction for question in questions))
    for question in questions:
        for args, options in question.commands:
            pipeline.execute_command(*args, **options)
    replies = iter(pipeline.execute(raise_on_error=False))
    return [[next(replies) for _ in question.commands] for question in questions]


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
        [reply] = call.ask([(args, options)], False)
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
            replies = call.ask(self.command_stack, self.transaction)
            if raise_on_error:
                real.raise_first_error(self.command_stack, replies)
            return replies
        finally:
            real.reset()

    @property
    def _needs_its_own_connection(self) -> bool:
        pipeline: Any = self
        return bool(pipeline.watching or pipeline.explicit_transaction or pipeline.scripts)
