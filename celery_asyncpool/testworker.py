"""A worker in a thread of the test process: messages and results stay in memory.

Celery's own consumer runs in one thread. Beside it runs one event loop, on which
the bodies of all async tasks are awaited, between the start and the end of the
app's lifespans; each job has a thread for its tracer, where ``def`` bodies run.
So a task never runs on the loop of the test, as it would not in another process.

The app has its own broker and result backend again when the worker has ended,
and no loop and no thread is left. Time limits are left out.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import Context
from typing import Any
from unittest import mock

import celery._state
import celery.worker.state
from billiard.einfo import ExceptionInfo
from celery import signals
from celery.app.trace import build_tracer
from celery.backends.cache import CacheBackend, DummyClient  # type: ignore[attr-defined]
from celery.concurrency.base import BasePool
from celery.exceptions import WorkerTerminate
from celery.utils.functional import LRUCache
from celery.utils.log import get_logger
from celery.utils.nodenames import anon_nodename
from celery.worker import WorkController
from celery.worker.consumer import Consumer
from kombu.transport import memory

from . import eager
from .child.django_threads import DjangoThreads, django_threads
from .child.jobcontext import JobContext, current_job, job_entered, job_of_task
from .child.lifespans import ProcessLifespans
from .child.loop import new_loop
from .child.retries import (
    RetryAfterBody,
    SendTask,
    defer_retries,
    send_retry,
    undo_defer_retries,
)
from .child.runner import as_celery_expects
from .settings import Settings

__all__ = ["TestWorker", "start_worker"]

logger = get_logger(__name__)

#: What Celery keeps once for a process.
_state: Any = celery._state
_worker_state: Any = celery.worker.state

#: Seconds between two looks for messages, and for results.
POLL_INTERVAL = 0.01

#: Seconds after which the consumer's thread sees that it should stop.
LOOK_INTERVAL = 0.05

#: Seconds that whatever runs has to end with the worker.
END_TIMEOUT = 30.0

#: What the app is told while the worker runs.
SETTINGS = {
    "broker_url": "memory://localhost/",
    "broker_read_url": None,
    "broker_write_url": None,
    "broker_transport": None,
    "broker_transport_options": {"polling_interval": POLL_INTERVAL},
    "broker_heartbeat": 0,
    "broker_connection_retry": False,
    "broker_connection_retry_on_startup": False,
    "task_always_eager": False,
    "worker_prefetch_multiplier": 0,
    "worker_state_db": None,
    "worker_timer_precision": LOOK_INTERVAL,
}

#: Celery's state is one for a process, and so are the queues in memory.
_alone = threading.Lock()

#: Variables that would have precedence over these settings.
VARIABLES = ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL")


@contextmanager
def start_worker(app: Any) -> Iterator[TestWorker]:
    """Run all tasks of *app* in this process while the block runs; see :mod:`.testing`."""
    if not _alone.acquire(blocking=False):
        raise RuntimeError("a worker runs in this process: there can be only one at a time")
    try:
        with _started(app) as worker:
            yield worker
    finally:
        _alone.release()


@contextmanager
def _started(app: Any) -> Iterator[TestWorker]:
    with _in_memory(app), _celerys_state(app), _retries_wait(app), _Bodies(app) as bodies:
        with _Consuming(app, bodies):
            yield TestWorker(app, bodies)


class TestWorker:
    """What a test gets: the worker of *app*."""

    __test__ = False  # no test class of pytest's

    def __init__(self, app: Any, bodies: _Bodies) -> None:
        self.app = app
        self._bodies = bodies

    def __repr__(self) -> str:
        return f"<TestWorker of {self.app.main} | {len(self._bodies.jobs)} running>"

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that runs the bodies, in another thread."""
        return self._bodies.loop


# What the app and Celery are told, and told back.


@contextmanager
def _in_memory(app: Any) -> Iterator[None]:
    """*app* sends and stores in memory, in queues of its own, and nowhere else."""
    app.finalize()
    app.conf.get("broker_url")  # until a setting is read, `conf` is not yet what it will be
    changes = app.conf.changes
    before = dict(changes)
    cached = {name: app.__dict__.pop(name) for name in ("amqp", "control") if name in app.__dict__}
    pool, app._pool = app._pool, None
    backend, app._backend_cache = app._backend_cache, MemoryBackend(app)
    queues = dict(memory.Channel.queues)
    memory.Channel.queues.clear()
    for key, value in SETTINGS.items():
        # A namespace's own names would come first.
        changes.update(dict.fromkeys(app.conf._to_keys(key), value))
    try:
        with mock.patch.dict(os.environ):
            for variable in VARIABLES:
                os.environ.pop(variable, None)
            yield
    finally:
        changes.clear()
        changes.update(before)
        memory.Channel.queues.clear()
        memory.Channel.queues.update(queues)
        app._backend_cache = backend
        app._pool = pool
        for name in ("amqp", "control"):
            app.__dict__.pop(name, None)
        app.__dict__.update(cached)


@contextmanager
def _celerys_state(app: Any) -> Iterator[None]:
    """What Celery keeps once for a process is *app*'s, and then as before."""
    default, current = _state.default_app, _state._tls.current_app
    will_block = _state.task_join_will_block()
    traces = {task: task.__trace__ for task in app.tasks.values()}
    app.set_default()
    app.set_current()
    try:
        yield
    finally:
        for task in app.tasks.values():
            task.__trace__ = traces.get(task)
        _state._set_task_join_will_block(will_block)
        _state.set_default_app(default)
        _state._set_current_app(current)
        _worker_state.reset_state()


@contextmanager
def _retries_wait(app: Any) -> Iterator[None]:
    """Retries of *app*'s tasks leave when their attempts are over, as in the pool."""
    before = app.__dict__.get("send_task")
    app.send_task = SendTask(app, app.send_task, _call)
    is_first = defer_retries()
    try:
        yield
    finally:
        del app.send_task
        if before is not None:
            app.send_task = before
        for task in app.tasks.values():
            wrapper = task.__dict__.get("retry")
            if isinstance(wrapper, RetryAfterBody):
                del task.retry
                if task.retry != wrapper.retry:  # it was the task's own, not its class's
                    task.retry = wrapper.retry
        if is_first:
            undo_defer_retries()


class MemoryBackend(CacheBackend):
    """Results of one worker, for all threads; those who wait look often."""

    thread_safe = True

    def __init__(self, app: Any, **kwargs: Any) -> None:
        super().__init__(app, backend="memory://", **kwargs)
        client = DummyClient()
        client.cache = LRUCache()
        self.__dict__["client"] = client
        self._lock = threading.RLock()

    def _store_result(self, task_id: Any, result: Any, state: Any, *args: Any, **kw: Any) -> Any:
        base: Any = super()
        with self._lock:
            return base._store_result(task_id, result, state, *args, **kw)

    def wait_for(self, task_id: Any, *args: Any, **options: Any) -> Any:
        return super().wait_for(task_id, *args, **{**options, "interval": POLL_INTERVAL})

    def get_many(self, task_ids: Any, *args: Any, **options: Any) -> Any:
        return super().get_many(task_ids, *args, **{**options, "interval": POLL_INTERVAL})


# The loop, and the jobs.


class _Bodies:
    """A thread with one loop, and the jobs whose bodies it runs."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.hostname = anon_nodename()
        self.jobs: set[_Job] = set()
        self.loop: asyncio.AbstractEventLoop
        self.django: DjangoThreads | None = None
        self._settings = Settings.from_conf(app.conf, slots=1)
        self._up: Future[asyncio.Event] = Future()
        self._thread = threading.Thread(
            target=Context().run, args=(self._run,), name="asyncpool-loop", daemon=True
        )

    def __enter__(self) -> _Bodies:
        """Start the lifespans; raises what keeps one from starting."""
        self._thread.start()
        try:
            self._leave = self._up.result()
        except BaseException:
            self._thread.join()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cancel_all()
        jobs = [job for job in list(self.jobs) if not job.has_ended_within(END_TIMEOUT)]
        self.loop.call_soon_threadsafe(self._leave.set)
        self._thread.join()
        if jobs:
            raise RuntimeError(f"tasks that do not end with their worker: {jobs}")

    def cancel_all(self) -> None:
        """The worker goes: end all bodies, as by a cold shutdown."""
        for job in list(self.jobs):
            job.cancel()

    def _run(self) -> None:
        """The thread."""
        signals.worker_process_init.send(sender=self.hostname)
        try:
            with asyncio.Runner(loop_factory=self._new_loop) as runner:
                runner.run(self._live())
        except BaseException as exc:
            if self._up.done():
                raise
            self._up.set_exception(exc)
        finally:
            signals.worker_process_shutdown.send(sender=self.hostname, pid=os.getpid(), exitcode=0)

    def _new_loop(self) -> asyncio.AbstractEventLoop:
        self.loop = new_loop(self._settings.loop)
        return self.loop

    async def _live(self) -> None:
        timeout = self._settings.lifespan_timeout
        lifespans = ProcessLifespans(
            self.app, is_copy=False, hostname=self.hostname, timeout=timeout
        )
        self.django = django_threads(self._settings.threads)
        leave = asyncio.Event()
        await lifespans.open()
        self._up.set_result(leave)
        await leave.wait()
        await _cancel([task for task in asyncio.all_tasks() if job_of_task(task)])
        await lifespans.close(timeout)
        if self.django is not None:
            self.django.stop(wait=True)


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=END_TIMEOUT)


class _Job(threading.Thread):
    """One job: its tracer runs in this thread, its async body on the loop."""

    def __init__(self, bodies: _Bodies, who: str, work: Callable[[], Any]) -> None:
        super().__init__(name=f"asyncpool-job-{who}", daemon=True)
        self.who = who
        self._bodies = bodies
        self._work = work
        self._awaiter = eager.CallersLoop(bodies.loop)

    def __repr__(self) -> str:
        return self.who

    def run(self) -> None:
        try:
            Context().run(self._run)
        finally:
            if eager.uses_django():
                eager.close_connections()
            self._bodies.jobs.discard(self)
            del self._work

    def _run(self) -> None:
        django = self._bodies.django
        orm = None if django is None else django.enter()
        try:
            with job_entered(JobContext(0)), suppress(WorkerTerminate):
                eager.with_awaiter(self._awaiter, self._work)
        finally:
            if orm is not None:
                orm.leave()

    def cancel(self) -> None:
        """Cancel its body; its tracer then reports nothing."""
        self._bodies.loop.call_soon_threadsafe(self._awaiter.cancel, WorkerTerminate())

    def terminate(self, signum: int) -> None:
        """For Celery: the task has been revoked."""
        self.cancel()

    def has_ended_within(self, timeout: float) -> bool:
        self.join(timeout)
        return not self.is_alive()


class _Pool(BasePool):
    """Celery's view of :class:`_Bodies`."""

    body_can_be_buffer = True
    task_join_will_block = False  # it would be the whole process that must not wait

    bodies: _Bodies

    def on_apply(  # type: ignore[override]
        self,
        target: Callable[..., Any],
        args: Any = (),
        kwargs: Any = None,
        callback: Any = None,
        accept_callback: Any = None,
        error_callback: Any = None,
        **options: Any,
    ) -> _Job:
        work = functools.partial(
            self._apply, target, args, kwargs, callback, accept_callback, error_callback
        )
        job = _Job(self.bodies, f"{args[0]}[{args[1]}]", work)
        self.bodies.jobs.add(job)
        job.start()
        return job

    def _apply(
        self,
        target: Callable[..., Any],
        args: Any,
        kwargs: Any,
        callback: Any,
        accept_callback: Any,
        error_callback: Any,
    ) -> None:
        """In the job's thread."""
        accept_callback(os.getpid(), time.monotonic())
        try:
            _prepare(self.bodies.app, args[0], self.bodies.hostname)
            value = target(*args, **(kwargs or {}))
            job = current_job()
            if job is not None and job.retries:
                value = send_retry(job, value, _call)
        except WorkerTerminate:
            raise  # it was cancelled from outside; nobody waits for its outcome
        except BaseException as exc:
            error_callback(_einfo(as_celery_expects(exc)))
        else:
            callback(value)

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Nothing: Celery asks the job itself, too."""

    def on_stop(self) -> None:
        self.bodies.cancel_all()

    on_terminate = on_stop


def _einfo(exc: BaseException) -> ExceptionInfo:
    try:
        raise exc
    except BaseException:
        return ExceptionInfo()


def _call(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _prepare(app: Any, name: str, hostname: str) -> None:
    """A tracer for what the task's functions are now: tests replace them."""
    task = app.tasks[name]
    eager.prepare(task)
    if not isinstance(task.retry, RetryAfterBody):
        task.retry = RetryAfterBody(task.retry, task)
    task.__trace__ = build_tracer(name, task, app.loader, hostname, app=app)


# Celery's worker.


class _Consuming:
    """A thread with Celery's worker, but for the pool."""

    def __init__(self, app: Any, bodies: _Bodies) -> None:
        self._ready: Future[None] = Future()
        controller: Any = WorkController
        self._worker = controller(
            app=app,
            hostname=bodies.hostname,
            concurrency=1,
            pool=_Pool,
            consumer_cls=_Consumer,
            ready_callback=self._on_ready,
            without_heartbeat=True,
            without_mingle=True,
            without_gossip=True,
        )
        self._worker.pool.bodies = bodies
        self._thread = threading.Thread(
            target=Context().run, args=(self._run,), name="asyncpool-consumer", daemon=True
        )

    def __enter__(self) -> None:
        self._thread.start()
        self._ready.result()

    def __exit__(self, *exc_info: object) -> None:
        _worker_state.should_stop = 0
        try:
            self._thread.join()
        finally:
            _worker_state.should_stop = None

    def _on_ready(self, consumer: Any) -> None:
        if not self._ready.done():
            self._ready.set_result(None)

    def _run(self) -> None:
        try:
            self._worker.start()
        finally:
            if not self._ready.done():
                self._ready.set_exception(RuntimeError("the worker did not start; see the log"))


class _Strategies(dict[str, Any]):
    """How to take each task; those that were registered later, too."""

    def __init__(self, consumer: Any) -> None:
        super().__init__()
        self.consumer = consumer

    def __missing__(self, name: str) -> Any:
        task = self.consumer.app.tasks.get(name)
        if task is None:
            raise KeyError(name)
        self[name] = task.start_strategy(self.consumer.app, self.consumer)
        return self[name]


class _Consumer(Consumer):
    """Takes what is sent to any queue, and stops soon when it should."""

    task_consumer: Any

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.strategies = _Strategies(self)

    def connect(self) -> Any:
        connection: Any = super().connect()
        connection.drain_events = functools.partial(_drain_briefly, connection.drain_events)
        return connection

    def perform_pending_operations(self) -> None:
        super().perform_pending_operations()
        for queue in list(self.app.amqp.queues):
            if not self.task_consumer.consuming_from(queue):
                self.add_task_queue(queue)


def _drain_briefly(drain_events: Callable[..., Any], **options: Any) -> Any:
    return drain_events(timeout=LOOK_INTERVAL)
