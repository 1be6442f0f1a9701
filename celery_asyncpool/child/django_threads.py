"""Django's ORM in async tasks: threads for it, and the end of connections.

Django does all work of its async ORM in "thread-sensitive" threads of asgiref,
of which a program without a web request has one: all tasks of a process would
take turns in it. Here each job has a thread-sensitive context of its own.

A connection belongs to a thread, so what bounds the connections of a process
are its threads: ``asyncpool_threads`` of them serve all jobs. A job gets one at
its first call, the least used one, and keeps it, since cursors and session
state belong to a connection. It holds it only while a call runs: with more jobs
than threads, several share one and take turns, and none waits for another's end.

When a job ends, Django's own rules decide about the connections of its thread
(``close_old_connections``: ``CONN_MAX_AGE``, broken ones, pools), as they do at
the end of a web request; while other jobs use the thread, only about broken ones.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

from celery.utils.log import get_logger

from .offload import OffloadedBackend
from .stepthreads import StepThread, StepThreads
from .trace import on_loop_thread

__all__ = [
    "DjangoBackend",
    "DjangoThreads",
    "backend_class",
    "django_threads",
    "forget_pools",
    "keep_fixup_off_loop",
]

logger = get_logger(__name__)

#: Pools of connections that the parent had opened; never touched, since their
#: descriptors are the parent's, or somebody else's by now.
_inherited_pools: list[Any] = []


def django_threads(limit: int, own: StepThreads | None = None) -> DjangoThreads | None:
    """The threads for Django's ORM in this process, None where Django is not in use."""
    return DjangoThreads(limit, own) if "django.db" in sys.modules else None


def keep_fixup_off_loop() -> None:
    """Let Celery's fixup close connections only where there can be any.

    Before and after each task it closes those of its thread. On the loop Django
    opens none, but leaves the objects for them there (a query set that looks at
    the features of its database), which it then refuses to close.
    """
    fixup = getattr(sys.modules.get("celery.fixups.django"), "DjangoWorkerFixup", None)
    if fixup is not None and not hasattr(fixup.close_database, "__wrapped__"):
        fixup.close_database = _off_loop(fixup.close_database)


def _off_loop(method: Callable[..., Any]) -> Any:
    @functools.wraps(method)
    def close_database(self: Any, **kwargs: Any) -> Any:
        if on_loop_thread() and not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
            return None
        return method(self, **kwargs)

    return close_database


def backend_class() -> type[OffloadedBackend]:
    """The class around the result backend, whose calls may use the ORM."""
    return DjangoBackend if "django.db" in sys.modules else OffloadedBackend


def forget_pools() -> None:
    """After a fork: let this process open its own pools (``OPTIONS["pool"]``)."""
    base = sys.modules.get("django.db.backends.postgresql.base")
    pools = getattr(getattr(base, "DatabaseWrapper", None), "_connection_pools", None)
    if pools:
        _inherited_pools.append(dict(pools))
        pools.clear()


class DjangoBackend(OffloadedBackend):
    """Ends, by Django's rules, the connections that its calls have used in their threads."""

    def _call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._call(name, *args, **kwargs)
        finally:
            _close_old_connections()


class DjangoThreads:
    """The threads in which the jobs of one process use Django's ORM.

    Arguments:
        limit: how many there are at most, and so how many connections to each database.
        own: gives a thread to a job that must not share one; None: all share.
    """

    def __init__(self, limit: int, own: StepThreads | None = None) -> None:
        self.limit = limit
        self.own = own
        self._threads: list[_OrmThread] = []
        #: A `def` body may run a loop in its thread, and call from there.
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<DjangoThreads {len(self._threads)}/{self.limit}>"

    def enter(self) -> JobExecutor:
        """Give the current context a thread of its own, when it first needs one.

        :meth:`JobExecutor.leave` has to be called at the end of the job.
        """
        from asgiref.sync import SyncToAsync, ThreadSensitiveContext

        context = ThreadSensitiveContext()
        executor = JobExecutor(self, self._lock)
        SyncToAsync.context_to_thread_executor[context] = executor
        SyncToAsync.thread_sensitive_context.set(context)
        return executor

    def lease(self) -> _OrmThread:
        """Return the thread for one more job; with the lock held."""
        thread = min(self._threads, key=lambda thread: thread.jobs, default=None)
        if thread is None or (thread.jobs and len(self._threads) < self.limit):
            thread = _OrmThread(len(self._threads))
            self._threads.append(thread)
        thread.jobs += 1
        if thread.jobs == 1:
            thread.executor.submit(_close_old_connections)
        return thread

    def release(self, thread: _OrmThread | StepThread) -> None:
        """One job less uses *thread*; with the lock held."""
        if isinstance(thread, StepThread):
            assert self.own is not None
            self.own.take_back(thread)
            return
        thread.jobs -= 1
        thread.executor.submit(thread.after_job)

    def stop(self, *, wait: bool = False) -> None:
        """Close all connections; a call that runs is not waited for, unless *wait*."""
        for thread in self._threads:
            thread.executor.submit(_close_all)
        for thread in self._threads:
            thread.executor.shutdown(wait=wait)


class JobExecutor(Executor):
    """What asgiref takes for the thread of one job's context."""

    def __init__(self, threads: DjangoThreads, lock: Any) -> None:
        self._threads = threads
        self._lock = lock
        self._thread: _OrmThread | StepThread | None = None
        self._calls = 0
        #: The body has started: until then, what uses the ORM may choose something
        #: on the connection for it, a tenant, say.
        self._in_body = False
        self._has_ended = False

    @property
    def has_thread(self) -> bool:
        """Whether the job has used the ORM, and so has its thread."""
        return self._thread is not None

    def on_body(self) -> None:
        """The body starts; what it uses may be shared with other jobs."""
        self._in_body = True

    def adopt(self, thread: StepThread) -> None:
        """From now on *thread* is the job's, and only its own."""
        with self._lock:
            self._thread = thread

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call *fn* in the job's thread."""
        with self._lock:
            if self._thread is None:
                own = self._threads.own if not self._in_body else None
                self._thread = self._threads.lease() if own is None else own.take()
            self._calls += 1
            future = self._thread.executor.submit(fn, *args, **kwargs)
        future.add_done_callback(self._on_done)
        return future

    def leave(self) -> None:
        """The job has ended; what it has left on the loop may still call."""
        with self._lock:
            self._has_ended = True
            self._release_if_unused()

    def _on_done(self, future: Future[Any]) -> None:
        with self._lock:
            self._calls -= 1
            self._release_if_unused()

    def _release_if_unused(self) -> None:
        if self._has_ended and not self._calls and self._thread is not None:
            thread, self._thread = self._thread, None
            self._threads.release(thread)


class _OrmThread:
    """One thread, and how many jobs it serves."""

    def __init__(self, number: int) -> None:
        self.jobs = 0
        self.executor = ThreadPoolExecutor(1, thread_name_prefix=f"asyncpool-orm-{number}")

    def after_job(self) -> None:
        """In the thread: a job has ended."""
        if self.jobs == 0:
            _close_old_connections()
        else:
            _close_broken_connections()


def _close_old_connections() -> None:
    from django.db import close_old_connections

    try:
        close_old_connections()
    except Exception:
        logger.exception("Django could not close old connections")


def _close_broken_connections() -> None:
    from django.db import connections

    for connection in connections.all(initialized_only=True):
        if connection.errors_occurred:
            try:
                connection.close_if_unusable_or_obsolete()
            except Exception:
                logger.exception("Django could not close a broken connection")


def _close_all() -> None:
    from django.db import connections

    connections.close_all()
