"""What Celery calls, in Celery's words."""

from __future__ import annotations

import atexit
import functools
import itertools
from collections.abc import Callable
from typing import Any

from celery.concurrency.base import BasePool
from celery.signals import worker_before_create_process, worker_ready
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from celery.worker.request import Request

from .calls import name_of_call
from .child.inherited import forget_parent
from .child.main import main
from .core import protocol
from .core.caps import Cap, Caps
from .core.job import Callbacks, Job
from .core.timelimits import Limits
from .files import WholeFiles
from .freethreading import tell_of_gil
from .handover import ChildOptions
from .knownsettings import tell_of_unknown_settings
from .lifespans import lifespans_of
from .parent.adopted import Adopted
from .parent.embedded_beat import end_beat_with_worker, leave_beat_alone
from .parent.fleet import EXIT_TIMEOUT
from .parent.hub import HubThread
from .parent.main_process import MainProcess
from .parent.memory import can_tell_memory, resident_memory
from .parent.process import Spawner, WorkerProcess
from .parent.shutdown import ColdSignals, Shutdown, is_cold_shutdown
from .parent.supervisor import Supervisor
from .prefetch import Prefetch
from .redis_close import survive_second_close
from .redis_transport import RedisBatching
from .request import (
    fail_for_good,
    finish_async_errbacks,
    finish_async_receivers,
    has_own_crash_budget,
    use_request,
)
from .requirements import check_loop
from .settings import Settings, check_platform
from .signals import asyncpool_process_started, warn_of_async_receivers
from .tasklimits import NO_TIME_LIMITS, Refusals, job_limits, tell_left_out, tell_of_threads
from .taskstate import remember
from .tasktypes import name_hidden_bodies

__all__ = ["Pool"]

logger = get_logger(__name__)

EX_FAILURE = 1


class Pool(BasePool):
    """Processes, each with an event loop on its main thread and many tasks on it.

    *limit* is what it is for every pool of Celery's: how many tasks run at once
    (``-c``), here spread over ``asyncpool_processes``.

    Raises :exc:`~celery_asyncpool.settings.BadSetting` (an
    ``ImproperlyConfigured``) before anything is forked.
    """

    #: A task that waits for a slot waits in Celery's consumer, where it can
    #: still expire or be revoked.
    uses_semaphore = True

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_platform()
        self.settings = Settings.from_conf(
            self.app.conf,
            self.limit,
            self.options.get("soft_timeout"),
            self.options.get("timeout"),
            self.options.get("maxtasksperchild"),
            self.options.get("max_memory_per_child"),
        )
        check_loop(self.settings.loop)
        tell_of_gil(self.settings.loop)
        tell_of_unknown_settings(self.app.conf)
        self._refusals = Refusals(self.app, self.settings.limits)
        tell_of_threads(self.app, self.settings.limits)
        name_hidden_bodies(self.app)
        end_beat_with_worker()
        self._caps = Caps(self.settings.caps)
        self._warn_of_unused_caps()
        self._prefetch = Prefetch()
        self._redis = RedisBatching(self.settings.redis_batching)
        self._files = WholeFiles()
        self._job_ids = itertools.count(1)
        self._supervisor: Supervisor | None = None
        self._main_process: MainProcess
        #: Celery's hub, or where its transport has none a thread with ours.
        self._hub: Any = None
        self._thread: HubThread | None = None
        #: Celery's consumer, once it is connected.
        self._consumer: Any = None
        self._is_closed = False  # as Celery does first, but for its signal handlers
        self._stopping = False
        self._cold_signals = ColdSignals()

    # Start.

    def on_start(self) -> None:
        """Start the processes; Celery calls it before it connects to the broker."""
        if self.settings.max_memory is not None and not can_tell_memory():
            logger.warning(
                "worker_max_memory_per_child has no effect: this system does not tell how "
                "much memory another process uses (Linux does, in /proc)"
            )
        survive_second_close()
        self._redis.install(self.app)
        self._files.install()
        use_request(self.app)
        remember(self.app)
        finish_async_errbacks()
        finish_async_receivers()
        warn_of_async_receivers()
        self._main_process = MainProcess()
        self._supervisor = self._new_supervisor()
        atexit.register(self._supervisor.kill_all)
        worker_ready.connect(self._on_worker_ready)
        self._main_process.prepare(
            spawns=not self.forking_enable, gc_threshold=self.settings.gc_threshold
        )
        self._supervisor.maintain()
        if self.options.get("threads", True):
            self._thread = HubThread(on_crash=lambda exc: _end_worker())
            self._thread.call(self._supervisor.attach, self._thread.hub)
            self._thread.start()

    def _new_supervisor(self) -> Supervisor:
        settings = self.settings
        return Supervisor(
            self._new_spawner(),
            limit=self.limit,
            max_processes=settings.max_processes,
            max_tasks=settings.max_tasks,
            max_memory=settings.max_memory,
            max_crashes=settings.max_crashes,
            drain_timeout=settings.drain_timeout,
            cancel_grace=settings.cancel_grace,
            exit_timeout=EXIT_TIMEOUT + settings.lifespan_timeout,
            caps=self._caps,
            on_slot_free=self._slot_is_free,
            on_waiting=self._on_waiting,
            on_give_up=_end_worker,
            connection_errors=self.app.connection_for_read().connection_errors,
            adopted=Adopted(reaps_strangers=self._main_process.is_workers_own),
        )

    def _new_spawner(self) -> Spawner:
        settings = self.settings
        _, hostname = self.options["initargs"]
        options = ChildOptions(
            hostname=hostname,
            threads=settings.threads,
            loop=settings.loop,
            cancel_grace=settings.cancel_grace,
            block_warning=settings.block_warning,
            lifespan_timeout=settings.lifespan_timeout,
            redis_batching=settings.redis_batching,
            gc_threshold=settings.gc_threshold,
            is_spawned=not self.forking_enable,
        )
        return Spawner(
            "fork" if self.forking_enable else "spawn",
            main,
            self.app,
            options,
            start_timeout=self._start_timeout(),
            before=functools.partial(worker_before_create_process.send, sender=self),
            let_go=forget_parent,
        )

    def _warn_of_unused_caps(self) -> None:
        for pattern in self._caps.unused(self.app.tasks):
            logger.warning(
                "asyncpool_limits: %r is the cap of no task that this worker knows", pattern
            )

    def _start_timeout(self) -> float:
        """Seconds after which a process that is not up is killed.

        It limits each lifespan itself; this is for one that blocks the loop.
        """
        steps = sum(not lifespan.lazy for lifespan in lifespans_of(self.app))
        steps += bool(asyncpool_process_started.receivers)
        return self.settings.start_timeout + steps * self.settings.lifespan_timeout

    def did_start_ok(self) -> bool:
        """Whether it is worth to go on; Celery asks once, when it is connected."""
        return self._supervisor is not None

    def register_with_event_loop(self, loop: Any) -> None:
        """Live in Celery's hub; called again after each reconnect to the broker."""
        if self._supervisor is not None:
            self._hub = loop
            self._supervisor.attach(loop)
            self._prefetch.attach(self._consumer)

    # Jobs.

    def on_apply(  # type: ignore[override]
        self,
        target: Callable[..., Any],
        args: Any = (),
        kwargs: Any = None,
        *,
        callbacks_propagate: tuple[type[BaseException], ...] = (),
        accept_callback: Callable[..., Any] | None = None,
        callback: Callable[..., Any] | None = None,
        error_callback: Callable[..., Any] | None = None,
        timeout_callback: Callable[..., Any] | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        correlation_id: str | None = None,
        **options: Any,
    ) -> Job:
        """Queue one call and return its record; never blocks.

        What keeps it from running is its outcome, reported like any other.

        With a hub, Celery's semaphore lets in only what has a slot. Without
        one, tasks wait here: ``waitforslot`` is not needed, since a task that
        had to wait is asked again whether it was revoked or has expired, and
        the consumer stays free to hear of it. The prefetch bounds how many wait.
        """
        request = getattr(accept_callback, "__self__", None)
        callbacks = Callbacks(
            accept=accept_callback,
            success=callback,
            error=error_callback,
            timeout=timeout_callback,
            propagate=callbacks_propagate,
            terminate=self._terminate,
        )
        own_limits = None
        if isinstance(request, Request):
            own_limits = request.time_limits
            callbacks = callbacks._replace(
                revoked=request.revoked,
                fail_for_good=functools.partial(fail_for_good, request),
                may_crash=has_own_crash_budget(request),
            )
        job_id = next(self._job_ids)
        name = name_of_call(target, args)
        job = Job(job_id, b"", name=name, uuid=str(correlation_id or job_id), callbacks=callbacks)
        error = None
        try:
            job.limits = self._limits(job, own_limits, soft_timeout, timeout)
            job.payload = _payload(target, args, kwargs or {}, job.limits)
        except Exception as exc:
            error = exc
        supervisor = self._supervisor
        if supervisor is None and self._stopping:
            # A signal handler of Celery's has stopped us while its consumer was
            # handing messages over. They stay unacknowledged, for somebody else.
            job.discard()
        else:
            self._in_hub((supervisor or self._started).submit, job, error)
        return job

    def _limits(self, job: Job, own: tuple[Any, Any] | None, soft: Any, hard: Any) -> Limits:
        """Return the limits of *job*; *own* are those of a message itself, hard and soft.

        Raises ``ValueError`` for a message whose task cannot run with what it has.
        Where there is none (None), nobody can be sure to settle what is refused.
        """
        limits = job_limits(soft, hard, self.settings.limits)
        if own is not None:
            self._refusals.check(job.name, *own)
            if own != NO_TIME_LIMITS:
                tell_left_out(limits, soft, str(job))
        return limits

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Nothing: process *pid* has other tasks too, so only ``Job.terminate`` ends one.

        Celery's ``Request`` calls both.
        """

    def _terminate(self, job: Job, signum: int) -> None:
        self._in_hub(self._started.terminate, job, signum)

    def _slot_is_free(self) -> None:
        """A job has ended or waits, and its slot is still there."""
        semaphore = self.options.get("semaphore")
        if semaphore is not None:
            semaphore.release()

    def _on_waiting(self, waiting: int) -> None:
        """So many jobs wait for their caps."""
        self._prefetch.on_waiting(self._consumer, waiting)

    def flush(self) -> None:
        """The broker is lost: drop what no process has, since it will come again.

        Called after Celery has reset the semaphore as if nothing were running.
        """
        if self._supervisor is not None:
            self._in_hub(self._flush)

    def _flush(self) -> None:
        self._started.drop_queued(then=self._reset_semaphore)

    def _reset_semaphore(self) -> None:
        semaphore = self.options.get("semaphore")
        if semaphore is not None:
            semaphore.value = max(semaphore.initial_value - self._started.slots_taken, 0)

    def maintain_pool(self, /, *args: Any, **kwargs: Any) -> None:
        """Replace processes that are missing, now rather than within a second."""
        self._in_hub(self._started.maintain)

    # Scaling and recycling.

    def grow(self, n: int = 1) -> None:
        """Add *n* slots; starts the processes for them. Raises ``ValueError`` below 0."""
        self._resize(self.limit + _count(n))
        semaphore = self.options.get("semaphore")
        for _ in range(n if semaphore is not None else 0):
            # Not `grow(n)`, which adds n and releases n more; and after a shrink
            # some of the new slots may be in use already.
            semaphore.initial_value += 1
            if self._started.slots_taken < semaphore.initial_value:
                semaphore.release()

    def shrink(self, n: int = 1) -> None:
        """Take *n* slots away; processes that are too many go when their jobs have ended.

        Jobs beyond the new limit run on. Raises ``ValueError`` where there are
        not as many slots, or below 0.
        """
        if _count(n) > self.limit:
            raise ValueError(f"cannot take away {n} slots: there are {self.limit}")
        self._resize(self.limit - n)
        semaphore = self.options.get("semaphore")
        if semaphore is not None:
            semaphore.shrink(n)

    def _resize(self, limit: int) -> None:
        self.limit = limit
        self._in_hub(self._started.resize, limit)

    def restart(self) -> None:
        """Replace all processes, one after the other (``celery control pool_restart``)."""
        self._in_hub(self._started.restart)

    def when_caught_up(self, function: Callable[[], Any]) -> None:
        """Call *function* when Celery knows what has ended while it kept its hub from running."""
        if self._supervisor is not None and self._thread is None:
            self._supervisor.when_caught_up(function)
        else:
            function()

    # The end.

    def on_close(self) -> None:
        """The worker begins to stop, and its consumer is still connected.

        A warm shutdown waits here, not in :meth:`on_stop`, which Celery calls
        when its consumer has closed remote control: a task that never ends can
        still be revoked. A cold one acknowledges what has been accepted.
        """
        self._is_closed = True
        self._shut_down(cold=is_cold_shutdown())

    def on_stop(self) -> None:
        """Celery's consumer has stopped, or a signal handler makes the shutdown cold.

        The handler does not close the pool before, and in Celery before 5.7 says
        only afterwards that it is a cold shutdown. Where it has interrupted the
        report of an outcome, that goes on first; then Celery closes the pool.
        """
        is_interrupted = self._supervisor is not None and self._supervisor.is_busy
        if is_interrupted and not self._is_closed:
            return
        self._consumer = None
        self._shut_down(cold=not self._is_closed)

    def on_terminate(self) -> None:
        """Cold shutdown: bodies are cancelled, processes end in seconds."""
        self._consumer = None
        self._shut_down(cold=True)

    def _shut_down(self, cold: bool = False) -> None:
        if self._supervisor is None or self._stopping:
            return  # ended before, or a signal handler that interrupted this very wait
        self._stopping = True
        supervisor = self._supervisor
        shutdown = Shutdown(
            supervisor, self._hub, self._thread, self._consumer, self._cold_signals
        )
        shutdown.run(cold)
        atexit.unregister(supervisor.kill_all)
        self._supervisor = self._hub = self._consumer = None
        self._redis.uninstall()
        self._files.uninstall()
        if self._thread is not None:
            self._thread.stop()
            self._thread = None
        leave_beat_alone()
        self._main_process.restore()

    def _on_worker_ready(self, sender: Any, **kwargs: Any) -> None:
        """Celery says what its consumer is."""
        self._consumer = sender
        self._prefetch.attach(sender)

    # Statistics.

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()  # type: ignore[misc]
        processes = self._supervisor.processes if self._supervisor is not None else []
        info.update(
            {
                "processes": [process.pid for process in processes],
                "max-tasks-per-child": self.settings.max_tasks or "N/A",
                "max-memory-per-child": self.settings.max_memory or "N/A",
                "loop": self.settings.loop,
                "timeouts": [self.settings.limits.soft or 0, self.settings.limits.hard or 0],
                "redis": self._redis.info(),
                "limits": {cap.pattern: _cap_info(cap) for cap in self._caps},
                "worker-processes": {
                    str(process.pid): self._process_info(process) for process in processes
                },
            }
        )
        return info

    def _process_info(self, process: WorkerProcess) -> dict[str, Any]:
        held = self._started.jobs.held(process.pid)
        return {
            "state": process.life.state.value,
            "slots": self._started.jobs.dispatcher.slots,
            "slots-in-use": len(held.jobs),
            "jobs-done": held.done,
            "memory": resident_memory(process.pid),
            "threads": self.settings.threads,
            "threads-in-use": process.status.get("threads", 0),
            "blocks": process.status.get("blocks", 0),
            "blocked-seconds": process.status.get("blocked_seconds", 0),
            "redis-results": {
                "on-the-loop": process.status.get("redis_results", 0),
                "writes": process.status.get("redis_writes", 0),
                "in-threads": process.status.get("redis_elsewhere", 0),
            },
        }

    @property
    def num_processes(self) -> int:
        """Slots: what Celery's prefetch arithmetic, autoscaler and Flower mean by it."""
        return int(self.limit)

    # Inside.

    @property
    def _started(self) -> Supervisor:
        if self._supervisor is None:
            raise RuntimeError("the pool is not running: start() was not called, or stop() was")
        return self._supervisor

    def _in_hub(self, function: Callable[..., Any], *args: Any) -> None:
        """Call *function* where the supervisor lives."""
        if self._thread is not None:
            self._thread.call(function, *args)
        else:
            function(*args)


def _payload(target: Any, args: Any, kwargs: Any, limits: Limits) -> bytes:
    """Return what a process gets to run; raises whatever keeps it from being sent."""
    try:
        payload = protocol.dumps((target, args, kwargs, limits.soft, limits.hard))
        protocol.check_size(payload)
    except MemoryError as exc:
        # Celery takes that for the end of its own process, and settles nothing.
        raise ValueError(f"the call is too large to be sent to a process: {exc!r}") from exc
    except Exception as exc:
        exc.add_note("The call could not be sent to a process of the pool.")
        raise
    return payload


def _cap_info(cap: Cap) -> dict[str, int]:
    return {"limit": cap.limit, "running": len(cap.running), "waiting": len(cap.waiting)}


def _count(n: int) -> int:
    if n < 0:
        raise ValueError(f"must be at least 0, got {n}")
    return n


def _end_worker() -> None:
    """Make Celery's worker stop with a failure, at its next turn."""
    setattr(worker_state, "should_stop", EX_FAILURE)  # noqa: B010 (its stub says None)
