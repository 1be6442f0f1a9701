"""Awaiting results: what ``result.get()`` and ``join()`` only do blocking."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from celery import states
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import EagerResult, ResultSet

from .listeners import Heard, Listener, Waiter, backend_of, listener_of
from .publish import call_in_thread
from .results import is_settled, leaves_of, parents_of

if TYPE_CHECKING:
    from celery.result import AsyncResult

__all__ = ["as_completed", "gather", "get"]

T = TypeVar("T")


@overload
async def get(
    result: AsyncResult[T], *, timeout: float | None = None, propagate: bool = True
) -> T: ...
@overload
async def get(
    result: ResultSet, *, timeout: float | None = None, propagate: bool = True
) -> list[Any]: ...
async def get(result: Any, *, timeout: float | None = None, propagate: bool = True) -> Any:
    """Wait for *result* and return its value; of a group, the list of its values.

    Raises what ``result.get()`` would: the task's exception (with *propagate*
    False it is returned instead), or ``celery.exceptions.TimeoutError`` after
    *timeout* seconds. The task itself is not ended by that, nor by a
    cancellation of the wait.
    """
    await _wait([result], timeout, propagate)
    return _value(result, propagate)


async def gather(*results: Any, timeout: float | None = None, propagate: bool = True) -> list[Any]:
    """Wait for all *results*, of tasks or groups, and return their values in this order.

    The first exception is raised at once; with *propagate* False exceptions are
    values among the others.
    """
    await _wait(results, timeout, propagate)
    return [_value(result, propagate) for result in results]


async def as_completed(
    results: Iterable[Any], *, timeout: float | None = None
) -> AsyncIterator[Any]:
    """Yield the members of *results*, a group's result or any others, as they finish.

    A task that has failed is yielded like any other: look at ``successful()``
    and ``result``, or ``await get(member)``. Neither waits any more.
    """
    waits = [_Member(member) for member in results]
    for wait in waits:
        if not wait.missing:
            yield wait.member
    owners: dict[str, list[_Member]] = {}
    for wait in waits:
        for leaf in wait.missing:
            owners.setdefault(leaf, []).append(wait)
    deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
    with _Arrivals(leaf for wait in waits for leaf in leaves_of(wait.member)) as arrivals:
        while arrivals.missing:
            leaf = await _before(deadline, arrivals.next())
            for wait in owners.pop(leaf.id, ()):
                wait.missing.discard(leaf.id)
                if not wait.missing:
                    yield wait.member


class _Member:
    """One of those that finish, and the tasks that it waits for."""

    def __init__(self, member: Any) -> None:
        self.member = member
        self.missing = {leaf.id for leaf in leaves_of(member) if not is_settled(leaf)}


class _Arrivals:
    """Listens for the ends of tasks, while its block runs.

    Each result gets what was heard of it, so nothing of it blocks any more.
    """

    def __init__(self, results: Iterable[Any]) -> None:
        self._waiter = Waiter()
        self._results: dict[str, list[Any]] = {}
        self._listeners: dict[Listener, set[str]] = {}
        for result in results:
            if is_settled(result):
                continue
            self._results.setdefault(result.id, []).append(result)
            listener = listener_of(result.app, backend_of(result))
            self._listeners.setdefault(listener, set()).add(result.id)

    @property
    def missing(self) -> bool:
        """Whether there is anything to wait for."""
        return bool(self._results)

    def __enter__(self) -> _Arrivals:
        for listener, task_ids in self._listeners.items():
            listener.add(self._waiter, task_ids)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for listener, task_ids in self._listeners.items():
            listener.remove(self._waiter, task_ids & self._results.keys())

    async def next(self) -> Any:
        """Return a result that has become ready; raise what made its backend unreadable."""
        while True:
            task_id, heard = await self._waiter.next()
            results = self._results.pop(task_id, [])
            if results:
                return _settle(results, heard)

    async def look(self) -> None:
        """Read all once, without listening."""
        for listener, task_ids in self._listeners.items():
            for task_id, heard in (await call_in_thread(listener.look, task_ids)).items():
                _settle(self._results.pop(task_id), heard)


async def _wait(results: Iterable[Any], timeout: float | None, propagate: bool) -> None:
    """Wait until the values of all *results* are there, or, to *propagate*, an error."""
    results = list(results)
    leaves = [leaf for result in results for leaf in leaves_of(result)]
    parents = [leaf for result in results for leaf in parents_of(result)] if propagate else []
    wanted = {leaf.id for leaf in leaves if not is_settled(leaf)}
    if not wanted:
        return
    if propagate:
        _raise_first(parents)
        _raise_first(leaves)
    arrivals = _Arrivals([*leaves, *parents])
    if timeout is not None and timeout <= 0:
        await arrivals.look()
        if not all(map(is_settled, leaves)):
            raise _timed_out()
        return
    deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
    with arrivals:
        while wanted:
            result = await _before(deadline, arrivals.next())
            wanted.discard(result.id)
            if propagate:
                _raise_first([result])


def _raise_first(results: Iterable[Any]) -> None:
    for result in results:
        if is_settled(result) and not result.ignored:
            if result.state in states.PROPAGATE_STATES:
                _value(result, True)


async def _before(deadline: float | None, awaitable: Any) -> Any:
    try:
        async with asyncio.timeout_at(deadline) as scope:
            return await awaitable
    except TimeoutError:
        if scope.expired():
            raise _timed_out() from None
        raise


def _timed_out() -> CeleryTimeoutError:
    return CeleryTimeoutError("The operation timed out.")


def _settle(results: list[Any], heard: Heard) -> Any:
    """Give *results*, all of one task, what was heard of it; return one of them."""
    if isinstance(heard, BaseException):
        raise heard
    for result in results:
        result._maybe_set_cache(dict(heard))
    return results[0]


def _value(result: Any, propagate: bool) -> Any:
    """The value of *result*, which is there."""
    if isinstance(result, ResultSet):
        return [_value(member, propagate) for member in result.results or ()]
    if result.ignored:
        return None
    if isinstance(result, EagerResult):
        return result.get(propagate=propagate, disable_sync_subtasks=False)
    return result.maybe_throw(propagate=propagate)
