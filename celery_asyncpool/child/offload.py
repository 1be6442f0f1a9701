"""Nothing blocking on the loop: what the tracer calls leaves for a thread.

The tracer stores results, updates chords, and publishes links, chains and
retries with Celery's blocking clients. Called in a tracer's greenlet, these
run in a few threads while the loop goes on; called anywhere else, they run
where they are called. Each thread uses its own ``app.backend``, as Celery's
rule for threads wants, and a copy of the job's context.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from celery import canvas
from celery.backends.base import Backend

from ..client import guard
from .redis_stores import Elsewhere, RedisStores, can_store
from .retries import SendTask, defer_retries
from .threadpool import ThreadPool
from .trace import call_in_thread, in_tracer

__all__ = [
    "OFFLOAD_THREADS",
    "OffloadedBackend",
    "offload",
    "offload_publishing",
    "redis_counters",
    "start_threads",
    "stop_stores",
    "stop_threads",
]

#: Celery's default ``broker_pool_limit``: more threads would only wait for a
#: producer.
OFFLOAD_THREADS = 10

#: Backend methods that compute and do no I/O: called right where they are.
PURE_METHODS = frozenset(
    {
        "as_uri",
        "current_task_children",
        "decode",
        "decode_result",
        "encode",
        "encode_result",
        "exception_to_python",
        "get_key_for_chord",
        "get_key_for_group",
        "get_key_for_task",
        "is_cached",
        "meta_from_decoded",
        "prepare_exception",
        "prepare_expires",
        "prepare_persistent",
        "prepare_value",
    }
)

#: The classes of Celery's canvas, each with an ``apply_async`` of its own.
CANVAS: tuple[Any, ...] = (
    canvas.Signature,
    canvas._chain,
    canvas.group,
    canvas._chord,  # type: ignore[attr-defined]
)

_threads: ThreadPool | None = None
#: Where results go, when the app's backend is Redis.
_stores: RedisStores | None = None


def start_threads(app: Any, redis_batching: bool = True) -> None:
    """Start the threads that :func:`offload` uses, in this process.

    With *redis_batching* results for Redis are stored on the loop, together.
    """
    global _threads, _stores
    _threads = ThreadPool(OFFLOAD_THREADS, "asyncpool-offload")
    if redis_batching and can_store(app.backend):
        _stores = RedisStores(app.backend, _threads)


def stop_stores() -> None:
    """On the loop: end what stores results there."""
    global _stores
    if _stores is not None:
        _stores.stop()
        _stores = None


def stop_threads() -> None:
    """Wait for what runs in the threads and end them."""
    global _threads
    if _threads is not None:
        _threads.stop()
        _threads = None


def redis_counters() -> dict[str, float]:
    """How many results were stored on the loop; empty where none can be."""
    return _stores.counters() if _stores is not None else {}


def offload(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call *function*, which may block, and return its result.

    In a tracer's greenlet it runs in a thread and the loop goes on meanwhile.
    """
    tracer = in_tracer()
    if tracer is None or _threads is None:
        return function(*args, **kwargs)
    call = functools.partial(copy_context().run, call_in_thread, function, *args, **kwargs)
    return tracer.wait(_threads.submit(call)).get()


class OffloadedBackend:
    """A result backend whose calls leave the tracer's greenlet for a thread.

    Arguments:
        current: returns the calling thread's own real backend.
        real: the backend that was here before; serves what is not offloaded.
    """

    def __init__(self, current: Callable[[], Any], real: Any) -> None:
        self._current = current
        self._real = real
        #: Whether it is the app's, whose results may be stored on the loop.
        self._is_apps = False

    @classmethod
    def of_app(cls, app: Any) -> OffloadedBackend:
        """Wrap the backend of *app*, of which each thread has its own."""
        wrapped = cls(lambda: app.backend, app.backend)
        wrapped._is_apps = True
        return wrapped

    @classmethod
    def of_task(cls, backend: Any) -> OffloadedBackend:
        """Wrap the *backend* that a task was given; all threads share it."""
        return cls(lambda: backend, backend)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._real!r}>"

    @property
    def unwrapped(self) -> Any:
        """The real backend, for who knows that its calls do not block the loop."""
        return self._real

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        if not callable(value) or name in PURE_METHODS or in_tracer() is None:
            return value
        if getattr(type(self._real), name, None) is Backend.process_cleanup:
            return value  # called after every task, and Celery's own does nothing
        return functools.partial(offload, self._call, name)

    def mark_as_done(
        self,
        task_id: str,
        result: Any,
        request: Any = None,
        store_result: bool = True,
        **options: Any,
    ) -> Any:
        """As the real one; without a result to store or a chord it does no I/O."""
        call = ("mark_as_done", task_id, result, request, store_result)
        if not getattr(request, "chord", None):
            if not store_result:
                return self._real.mark_as_done(*call[1:], **options)
            if self._is_apps and _stores is not None and in_tracer() is not None:
                with contextlib.suppress(Elsewhere):
                    return _stores.call(*call, **options)
        return offload(self._call, *call, **options)

    def _call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """In the thread: call the method of the thread's own backend."""
        backend = self._current()
        if backend is self:  # a thread-safe backend is shared by all threads
            backend = self._real
        return getattr(backend, name)(*args, **kwargs)


def offload_publishing(app: Any) -> None:
    """Make tracers of *app* publish in threads, in this process.

    ``app.send_task`` is what every single publish of Celery goes through. The
    canvas publishes several messages with one producer, and would wait for
    that producer on the loop, so its calls leave as a whole.
    """
    if isinstance(app.send_task, SendTask):
        return
    guard.install_in_pool(app, _in_tracer)
    app.send_task = SendTask(app, app.send_task, offload)
    defer_retries()
    for cls in CANVAS:
        cls.apply_async = _offloaded(cls.apply_async)


def _in_tracer() -> bool:
    """Whether a call that is made on the loop's thread leaves it, or waits."""
    return in_tracer() is not None


def _offloaded(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def apply_async(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return offload(method, self, *args, **kwargs)

    return apply_async
