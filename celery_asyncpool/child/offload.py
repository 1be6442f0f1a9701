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
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import canvas
from celery.app import task as celery_task
from celery.backends.base import Backend
from celery.exceptions import Reject, Retry

from ..client import guard
from ..core.timelimits import Verdict
from .jobcontext import JobContext, current_job
from .redis_stores import Elsewhere, RedisStores, can_store
from .softhook import in_hook
from .threadpool import ThreadPool
from .trace import call_in_thread, can_settle, in_tracer, on_loop_thread

__all__ = [
    "OFFLOAD_THREADS",
    "OffloadedBackend",
    "RetryAfterBody",
    "offload",
    "offload_publishing",
    "publish_retries",
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
    if isinstance(app.send_task, _SendTask):
        return
    guard.install_in_pool(app, _does_not_block)
    app.send_task = _SendTask(app.send_task)
    for cls in CANVAS:
        cls.apply_async = _offloaded(cls.apply_async)
    Backend.mark_as_retry = _unless_stored(Backend.mark_as_retry)  # type: ignore[method-assign]


def _does_not_block() -> bool:
    """Whether the call that is being made on the loop's thread leaves it, or waits."""
    job = current_job()
    return in_tracer() is not None or _defers(job)


def _defers(job: JobContext | None) -> bool:
    """Whether it is ``retry`` that publishes: other threads of *job* do what they want."""
    return job is not None and job.retrying_thread == threading.get_ident()


def _offloaded(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def apply_async(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        if _defers(current_job()):
            return method(self, *args, **kwargs)
        return offload(method, self, *args, **kwargs)

    return apply_async


class _SendTask:
    """``app.send_task`` that knows of tracers and of deferred retries."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self.real = real
        functools.update_wrapper(self, real)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        job = current_job()
        if job is not None and _defers(job):
            job.deferred.append((args, kwargs))
            return None  # Task.retry, the only caller that defers, ignores it
        return offload(self.real, *args, **kwargs)


class RetryAfterBody:
    """``task.retry`` whose message leaves when the body has unwound.

    It does all that ``retry`` does but for the publish, which waits in the job
    (:func:`publish_retries`). So it does not block the loop, and a limit that is
    over meanwhile does not both end the task and retry it.
    """

    def __init__(self, retry: Callable[..., Any]) -> None:
        self.retry = retry
        functools.update_wrapper(self, retry)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        job = current_job()
        if job is None or not (on_loop_thread() or can_settle()):
            return self.retry(*args, **kwargs)  # in a thread that may outlive the body
        if in_hook():
            raise RuntimeError("on_soft_limit cannot retry its task, whose body goes on")
        job.retrying_thread = threading.get_ident()
        try:
            return self.retry(*args, **kwargs)
        finally:
            job.retrying_thread = None


def publish_retries(task: Any, error: BaseException | None) -> None:
    """Publish the retries that the body of *task*, which ended with *error*, asked for.

    Not where a body calls another task: there, somebody else's body has ended.
    RETRY is stored first: the next attempt may end, and store that, before this
    one's tracer gets to it. Raises ``Reject`` without requeue when a publish
    fails, as ``Task.retry`` does when it publishes by itself.
    """
    job = current_job()
    if job is None or not job.deferred or job.in_body or not can_settle():
        return
    if job.aborted or (job.control and job.control.clock.verdict is not Verdict.NONE):
        return
    if isinstance(error, Retry):
        job.retry_is_stored = _store_retry(task, error)
    while job.deferred:
        args, kwargs = job.deferred.pop(0)
        try:
            task.app.send_task(*args, **kwargs)
        except Exception as exc:
            raise Reject(exc, requeue=False) from exc


def _store_retry(task: Any, reason: Retry) -> bool:
    """Do what the tracer does for *reason*; whether it need not be done again."""
    request = task.request
    if _is_ignored(task, request) and not task.store_errors_even_if_ignored:
        return True
    traceback = ExceptionInfo((type(reason), reason, reason.__traceback__)).traceback
    try:
        task.backend.mark_as_retry(request.id, reason.exc, traceback, request=request)
    except Exception:
        return False  # the tracer tries again, and reports what is wrong
    return True


def _unless_stored(method: Callable[..., Any]) -> Callable[..., Any]:
    """For the tracer, which comes second."""

    @functools.wraps(method)
    def mark_as_retry(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        job = current_job()
        if job is not None and job.retry_is_stored:
            return None
        return method(self, *args, **kwargs)

    return mark_as_retry


def _is_ignored(task: Any, request: Any) -> Any:
    """Whether nobody wants the result; Celery before 5.6 asks the task only."""
    if hasattr(celery_task, "get_actual_ignore_result"):
        return celery_task.get_actual_ignore_result(task, request)
    return task.ignore_result
