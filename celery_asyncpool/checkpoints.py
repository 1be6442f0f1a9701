"""Checkpoints: how far a task has got, kept in the result backend under its id.

A run that comes later under the same id, after a retry or a redelivery, finds
what was stored last. The key is one of its own beside the task's result, so
state and result are as they were to everybody else; it goes when a run of the
task ends well, and otherwise expires as results do.

The backend's blocking calls are made in a few threads; those of one run one
after the other, in the order in which the run asked for them.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any

from celery import signals, states
from celery.backends.base import BaseKeyValueStoreBackend, DisabledBackend
from celery.exceptions import ImproperlyConfigured
from celery.utils.log import get_logger
from kombu.exceptions import DecodeError, EncodeError

from .client.threads import CallThreads, make_call

__all__ = ["install_in_pool", "load", "save"]

logger = get_logger(__name__)

#: As many as there are for publishing.
THREADS = 10

#: What the backend's key of a task's result is followed by.
SUFFIX = ".checkpoint"

#: Where a run keeps its :class:`Checkpoints`: in its request.
ATTRIBUTE = "asyncpool_checkpoints"


def _new_threads() -> None:
    global _threads
    _threads = CallThreads(THREADS, "asyncpool-checkpoint")


_threads: CallThreads
_new_threads()
os.register_at_fork(after_in_child=_new_threads)


def _call(function: Callable[[], Any]) -> Any:
    return function()


_call_blocking: Callable[[Callable[[], Any]], Any] = _call


def install_in_pool(offload: Callable[[Callable[[], Any]], Any]) -> None:
    """Say how Celery's tracer makes a call that blocks, in a pool process."""
    global _call_blocking
    _call_blocking = offload


async def save(task: Any, state: Any) -> None:
    """Store *state* for the run of *task* that is under way; returns when it is stored."""
    checkpoints = Checkpoints.of_run(task)
    if checkpoints is not None:
        await checkpoints.save(state)


async def load(task: Any) -> Any:
    """Return what was stored last for the task's id; None when there is nothing."""
    checkpoints = Checkpoints.of_run(task)
    return await checkpoints.load() if checkpoints is not None else None


class Checkpoints:
    """Those of one run of *task*, which has *task_id*, in *store*."""

    def __init__(self, task: Any, task_id: str, store: BackendStore | EagerStore) -> None:
        self.task = task
        self.task_id = task_id
        self.store = store
        self._calls = OrderedCalls()
        #: There may be something to remove.
        self._is_stored = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.task.name}[{self.task_id}]>"

    @classmethod
    def of_run(cls, task: Any) -> Checkpoints | None:
        """Those of the run that the calling code belongs to.

        None in a direct call of the task, which has no id and never comes again.
        Raises ``ImproperlyConfigured`` where the result backend cannot keep them.
        """
        request = task.request
        if request.id is None:
            return None
        checkpoints: Checkpoints | None = getattr(request, ATTRIBUTE, None)
        if checkpoints is None:
            store = _eager_store if request.is_eager else BackendStore(task)
            checkpoints = cls(task, request.id, store)
            setattr(request, ATTRIBUTE, checkpoints)
            signals.task_postrun.connect(
                _on_postrun, sender=task, weak=False, dispatch_uid=__name__
            )
        return checkpoints

    async def save(self, state: Any) -> None:
        # Now and here: what is stored is what the caller has at this moment.
        payload = self._encode(state)
        self._is_stored = True
        await self._in_turn(functools.partial(self.store.set, self.task_id, payload))

    async def load(self) -> Any:
        payload = await self._in_turn(functools.partial(self.store.get, self.task_id))
        if payload is None:
            return None
        self._is_stored = True
        try:
            return self.task.backend.decode(payload)
        except DecodeError as exc:
            # Half of it: a file whose writer was killed.
            logger.warning(
                "the checkpoint of %s[%s] cannot be read, it is as if there were none: %s",
                self.task.name,
                self.task_id,
                exc,
            )
            return None

    def remove(self) -> None:
        """Remove what is stored, when all calls so far have been made; blocks."""
        if not self._is_stored:
            return
        call = functools.partial(self.store.delete, self.task_id)
        if not self.store.blocks:
            call()
            return
        try:
            self._calls.submit(call).result()
        except FileNotFoundError:
            pass  # it has expired, and was cleaned away
        except Exception:
            logger.warning(
                "the checkpoint of %s[%s] could not be removed; it will expire",
                self.task.name,
                self.task_id,
                exc_info=True,
            )

    async def _in_turn(self, call: Callable[[], Any]) -> Any:
        if not self.store.blocks:
            return call()
        context = copy_context()
        return await asyncio.wrap_future(self._calls.submit(functools.partial(context.run, call)))

    def _encode(self, state: Any) -> Any:
        backend = self.task.backend
        try:
            return backend.encode(state)
        except (EncodeError, TypeError, ValueError) as exc:
            raise EncodeError(
                f"the checkpoint of {self.task.name} cannot be encoded by the result_serializer "
                f"{backend.serializer!r}: {exc}"
            ) from exc


class BackendStore:
    """The result backend of *task*, where it is a store of keys and values."""

    blocks = True

    def __init__(self, task: Any) -> None:
        backend = getattr(task.backend, "unwrapped", task.backend)
        if not isinstance(backend, BaseKeyValueStoreBackend):
            there_is = (
                "there is none"
                if isinstance(backend, DisabledBackend)
                else f"{type(backend).__name__} is none"
            )
            raise ImproperlyConfigured(
                f"checkpoints of {task.name} need a result backend that keeps keys and values, "
                f"and {there_is}: set result_backend to Redis, files, memcached or another such "
                "store"
            )
        self._task = task

    def get(self, task_id: str) -> Any:
        """Return the stored bytes, None if there are none."""
        backend = self._task.backend  # the calling thread's own
        return backend.get(backend.get_key_for_task(task_id, SUFFIX))

    def set(self, task_id: str, payload: Any) -> None:
        """Store *payload*; it expires as results do."""
        backend = self._task.backend
        backend.set(backend.get_key_for_task(task_id, SUFFIX), payload)

    def delete(self, task_id: str) -> None:
        """Remove what is stored."""
        backend = self._task.backend
        backend.delete(backend.get_key_for_task(task_id, SUFFIX))


class EagerStore:
    """This process's memory, for eager runs, which store no results either."""

    blocks = False

    def __init__(self) -> None:
        self._payloads: dict[str, Any] = {}

    def get(self, task_id: str) -> Any:
        """Return what is stored, None if there is nothing."""
        return self._payloads.get(task_id)

    def set(self, task_id: str, payload: Any) -> None:
        """Store *payload*."""
        self._payloads[task_id] = payload

    def delete(self, task_id: str) -> None:
        """Remove what is stored."""
        self._payloads.pop(task_id, None)


_eager_store = EagerStore()


class OrderedCalls:
    """Calls that threads make one after the other."""

    def __init__(self) -> None:
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._lock = threading.Lock()
        self._is_working = False

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Make *call* after the earlier ones, unless the future is cancelled before that."""
        future: Future[Any] = Future()
        with self._lock:
            self._calls.append((future, call))
            if not self._is_working:
                self._is_working = True
                _threads.submit(self._work)
        return future

    def _work(self) -> None:
        while (item := self._next()) is not None:
            future, call = item
            make_call(future, call)
            del item, future, call

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._lock:
            if self._calls:
                return self._calls.popleft()
            self._is_working = False
            return None


def _on_postrun(sender: Any, state: str | None = None, **kwargs: Any) -> None:
    """A run has ended, and its result is stored."""
    request = sender.request
    checkpoints: Checkpoints | None = getattr(request, ATTRIBUTE, None)
    if checkpoints is None:
        return
    # An eager run that does not retry will not come again.
    if state == states.SUCCESS or (request.is_eager and state != states.RETRY):
        _call_blocking(checkpoints.remove)
