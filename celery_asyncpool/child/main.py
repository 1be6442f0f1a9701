"""A worker process, from the fork to the exit code."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
from asyncio import Task
from typing import Any

from celery.concurrency.prefork import process_destructor, process_initializer
from celery.utils.log import get_logger

from .. import checkpoints
from ..core.lifecycle import EX_BOOT
from ..files import WholeFiles
from ..garbage import collect_less_often
from ..handover import PROCESS_VARIABLE, ChildEnd, ChildOptions
from ..leftovers import kill_leftovers
from ..lifespans import LifespanError
from ..pipe import Pipe
from ..taskstate import put_back
from . import offload, tasks, trace
from .django_threads import backend_class, django_threads, forget_pools, keep_fixup_off_loop
from .forks import allow_forks, end_copies_that_turn, ends_copies
from .jobcontext import follow_task_stack, job_of_task
from .lifespans import ProcessLifespans
from .loop import new_loop
from .monitoring import flush_monitoring, prepare_monitoring
from .orphan import ORPHAN_GRACE, OrphanGuard
from .parent_signals import ParentSignals, take_back_signals
from .receivers import call_receivers_as_steps
from .runner import Runner
from .tasks import RunCall
from .threads import BodyThreads, give_loops_to_threads
from .watchdog import Watchdog

__all__ = ["main"]

logger = get_logger(__name__)

#: Seconds that what bodies have left on the loop gets to end.
LEFTOVER_GRACE = 1.0

#: Seconds that monitoring tools have to send their last batch, and in a hurry.
FLUSH_TIMEOUT, ABORT_FLUSH_TIMEOUT = 5.0, 1.0

#: Seconds that lifespans have to end in a cold shutdown; then the parent kills.
ABORT_CLOSE_TIMEOUT = 1.0


def main(app: Any, end: ChildEnd, options: ChildOptions) -> None:
    """Run jobs until there is nothing more to do; ends with ``SystemExit``."""
    try:
        process = _start(app, end, options)
    except BaseException:
        logger.critical("worker process %s could not start", os.getpid(), exc_info=True)
        sys.exit(EX_BOOT)
    exitcode = process.run()
    process_destructor(os.getpid(), exitcode)
    flush_monitoring(ABORT_FLUSH_TIMEOUT if process.is_hurried else FLUSH_TIMEOUT)
    sys.exit(exitcode)


def _start(app: Any, end: ChildEnd, options: ChildOptions) -> _Process:
    os.environ[PROCESS_VARIABLE] = str(os.getpid())
    os.setpgid(0, 0)  # a Ctrl-C in the terminal reaches neither us nor our subprocesses
    forget_pools()
    collect_less_often(options.gc_threshold)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})

    WholeFiles().install()  # a fork has it already
    app.loader.init_worker()  # a spawned child has imported no task yet
    app.finalize()
    put_back(app)
    runs = _prepare_tasks(app, options.redis_batching)
    # Sends worker_process_init, before any loop runs: Django's fixup and others
    # make blocking calls there that Django refuses while one does.
    process_initializer(app, options.hostname)
    prepare_monitoring()
    _take_back_sigchld()
    take_back_signals()
    allow_forks()
    guard = OrphanGuard(end.sock.fileno(), end.parent_pid)
    guard.start()
    # The parent asks with SIGUSR1 where a blocked loop is; answered in C, so
    # also when a call holds the interpreter's lock.
    faulthandler.register(signal.SIGUSR1, file=end.report_fd, all_threads=True, chain=False)
    process = _Process(app, runs, Pipe(end.sock), end.report_fd, options)
    guard.tell(process.lose_parent)
    return process


def _prepare_tasks(app: Any, redis_batching: bool) -> dict[str, RunCall]:
    """Make Celery's parts of *app* follow jobs and leave the loop free."""
    follow_task_stack()
    call_receivers_as_steps()
    keep_fixup_off_loop()
    offload.start_threads(app, redis_batching)
    offload.offload_publishing(app)
    checkpoints.install_in_pool(offload.offload)
    app._backend = backend_class().of_app(app)
    return {name: tasks.prepare(task) for name, task in app.tasks.items()}


def _take_back_sigchld() -> None:
    """Undo what a receiver of ``worker_process_init`` has done to SIGCHLD, and say so.

    A handler that calls ``waitpid`` takes the exit codes of subprocesses from
    the loop and from :mod:`subprocess`, and uvloop replaces any handler with
    its own at the first subprocess; where the signal is ignored, exit codes are lost.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    if handler is signal.SIG_DFL:
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    logger.warning(
        "worker process %s: the SIGCHLD handler %r, which was set in worker_process_init, is "
        "taken back: here the event loop watches over subprocesses, and a handler would take "
        "their exit codes from it. Use asyncio's subprocesses, whose end can be awaited",
        os.getpid(),
        handler,
    )


class _Process:
    """The loop, the runner on it and their end."""

    def __init__(
        self,
        app: Any,
        runs: dict[str, RunCall],
        pipe: Pipe,
        report_fd: int,
        options: ChildOptions,
    ) -> None:
        self.loop = new_loop(options.loop)
        asyncio.set_event_loop(self.loop)
        trace.bind_loop(self.loop)
        end_copies_that_turn(self.loop)
        give_loops_to_threads()
        self.cancel_grace = options.cancel_grace
        self.lifespan_timeout = options.lifespan_timeout
        self.lifespans = ProcessLifespans(
            app,
            is_copy=options.is_spawned,
            hostname=options.hostname,
            timeout=options.lifespan_timeout,
        )
        self.threads = BodyThreads(options.threads)
        self.runner = Runner(app, runs, self.loop, pipe, self.threads, options.cancel_grace)
        self.runner.django = django_threads(options.threads, self.runner.step_threads)
        self.runner.signals = ParentSignals(self.loop)
        if options.block_warning > 0:
            self.runner.watchdog = Watchdog(
                self.loop,
                options.block_warning,
                is_busy=lambda: self.runner.is_busy,
                who=self._who_blocks,
                report_fd=report_fd,
                idle_file=__file__,
            )

    @property
    def is_hurried(self) -> bool:
        """Whether somebody will kill this process soon: a cold shutdown, or no parent."""
        return self.runner.aborting or self.runner.lost_parent

    def lose_parent(self) -> None:
        """From any thread: the worker's main process has gone."""
        try:
            self.loop.call_soon_threadsafe(self.runner.lose_parent)
        except RuntimeError:
            return  # the loop is closed: we are about to exit

    def run(self) -> int:
        """Run until the parent has no more use for us; return the exit code."""
        try:
            self._run_until(self.lifespans.open())
        except LifespanError as exc:
            logger.critical("worker process %s: %s", os.getpid(), exc, exc_info=True)
            return self._end(EX_BOOT)
        if self.runner.watchdog is not None:
            self.runner.watchdog.start()
        self.runner.start()
        self._run_until(self.runner.finished)
        self._run_until(self._end_tasks())
        if self.runner.watchdog is not None:
            self.runner.watchdog.stop()
        return self._end(0)

    async def _end_tasks(self) -> None:
        """End what tasks have left, then the lifespans that they may have used."""
        if self.runner.lost_parent:
            await self._abort(ORPHAN_GRACE)
            kill_leftovers(os.getpid())
            return  # at once: there is no time for more
        if self.runner.aborting:
            await self._abort(self.cancel_grace)
        await self._cancel([task for task in asyncio.all_tasks() if job_of_task(task)])
        is_hurried = self.is_hurried
        await self.lifespans.close(ABORT_CLOSE_TIMEOUT if is_hurried else self.lifespan_timeout)

    def _end(self, exitcode: int) -> int:
        self._run_until(self._close())
        offload.stop_threads()
        trace.bind_loop(None)
        self.loop.close()
        return exitcode

    def _who_blocks(self) -> tuple[int, str]:
        """Name the job that the loop is running; called by the watchdog's thread."""
        task = asyncio.current_task(self.loop)
        job = job_of_task(task) or self.runner.job_of(task)
        if job is None:
            return 0, "something that is no task of Celery's"
        return job.job_id, f"task {job.who}"

    def _run_until(self, awaitable: Any) -> None:
        """Run the loop until *awaitable* is done, whatever tasks do to the loop.

        asyncio lets a SystemExit that was raised in a task pass through the
        loop, and any body can call ``loop.stop()``; neither is ours to obey. A body that
        turns asyncio's loop itself (nest_asyncio) leaves it an empty list: an IndexError.
        """
        future = awaitable
        if asyncio.iscoroutine(awaitable):
            future = Task(awaitable, loop=self.loop)  # whatever makes the tasks of bodies
        while not future.done():
            try:
                with ends_copies:
                    self.loop.run_until_complete(future)
            except (SystemExit, KeyboardInterrupt) as exc:
                logger.error("a task raised %r in the event loop; the process goes on", exc)
            except (RuntimeError, IndexError) as exc:
                if future.done():
                    raise
                logger.error("a task stopped the event loop (%s); the process goes on", exc)
        future.result()

    async def _abort(self, grace: float) -> None:
        """End all bodies, with *grace* seconds to clean up."""
        waiting = self.runner.abort_all()
        if waiting:
            await asyncio.wait(waiting, timeout=grace)

    async def _close(self) -> None:
        """End what anybody has left on the loop, and the threads."""
        await self._cancel(
            [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        )
        await self.loop.shutdown_asyncgens()
        self.threads.shutdown()
        if self.runner.django is not None:
            self.runner.django.stop()
        self.runner.step_threads.stop()
        offload.stop_stores()
        await asyncio.sleep(0)  # the loop learns of the connection's end

    async def _cancel(self, tasks: list[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=LEFTOVER_GRACE)
