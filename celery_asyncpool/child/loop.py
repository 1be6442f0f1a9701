"""The event loop of a worker process, which many bodies share.

What a body sets of its running loop (a task factory, a default executor, an
exception handler) holds for its own job, as it would on a loop of its own:
the neighbours, and the pool, keep theirs. What is set outside of jobs, in a
lifespan say, holds for all.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any

from .jobcontext import LoopSettings, current_job, job_of_task
from .parent_signals import LEFT_TO_PARENT, leave_to_parent
from .trace import call_on_loop

__all__ = ["SharedLoop", "new_loop"]

#: What comes after :class:`SharedLoop` is uvloop's loop or asyncio's.
_Loop: Any = object


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    """A loop of the kind that ``asyncpool_loop`` names, for many jobs."""
    cls: Any = asyncio.SelectorEventLoop
    if name == "uvloop":
        import uvloop

        cls = uvloop.Loop
    # By its name it is what it was: libraries look whether they run on uvloop.
    shared: Any = type(cls.__name__, (SharedLoop, cls), {"__module__": cls.__module__})
    loop: asyncio.AbstractEventLoop = shared()
    return loop


class _FactoryOfJobs:
    """A task factory that is each job's own; *of_process* is that of all others."""

    def __init__(self, of_process: Callable[..., Any] | None) -> None:
        self.of_process = of_process

    def __call__(self, loop: Any, coro: Any, **options: Any) -> Any:
        settings = _settings_of_job()
        factory = self.of_process
        if settings is not None and settings.has_task_factory:
            factory = settings.task_factory
        if factory is None:
            return asyncio.Task(coro, loop=loop, **options)
        return call_on_loop(partial(copy_context().run, factory, loop, coro, **options))


class SharedLoop(_Loop):  # type: ignore[misc]
    """Keeps what one job sets from the others; to be put before a loop's class."""

    def set_task_factory(self, factory: Any) -> None:
        """As the loop's; called by a job, for its own tasks only."""
        if factory is not None and not callable(factory):
            raise TypeError("task factory must be a callable or None")
        settings = _settings_of_job(make=True)
        ours = super().get_task_factory()
        if settings is None:
            is_needed = factory is not None or isinstance(ours, _FactoryOfJobs)
            super().set_task_factory(_FactoryOfJobs(factory) if is_needed else None)
            return
        settings.task_factory = factory
        settings.has_task_factory = True
        if not isinstance(ours, _FactoryOfJobs):
            super().set_task_factory(_FactoryOfJobs(ours))

    def get_task_factory(self) -> Any:
        """The calling job's, or the process's."""
        settings = _settings_of_job()
        if settings is not None and settings.has_task_factory:
            return settings.task_factory
        factory: Any = super().get_task_factory()
        return factory.of_process if isinstance(factory, _FactoryOfJobs) else factory

    if sys.version_info >= (3, 14):

        def create_task(self, coro: Any, **options: Any) -> Any:
            """As the loop's; the first step of an eager task is made where the others are."""
            create = super().create_task
            if options.get("eager_start"):
                return call_on_loop(partial(copy_context().run, create, coro, **options))
            return create(coro, **options)

    def set_default_executor(self, executor: Any) -> None:
        """As the loop's; called by a job, for its own calls only."""
        settings = _settings_of_job(make=True)
        if settings is None:
            super().set_default_executor(executor)
        else:
            settings.executor = executor

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        """As the loop's."""
        if executor is None:
            settings = _settings_of_job()
            if settings is not None:
                executor = settings.executor
        return super().run_in_executor(executor, func, *args)

    async def shutdown_default_executor(self, /, *args: Any, **kwargs: Any) -> None:
        """As the loop's; called by a job, for its own executor: the process's serves others."""
        settings = _settings_of_job(make=True)
        if settings is None:
            await super().shutdown_default_executor(*args, **kwargs)
            return
        executor, settings.executor = settings.executor, None
        if executor is not None:
            await super().run_in_executor(None, executor.shutdown)

    def set_exception_handler(self, handler: Any) -> None:
        """As the loop's; called by a job, for its own errors only."""
        settings = _settings_of_job(make=True)
        if settings is None:
            super().set_exception_handler(handler)
            return
        if handler is not None and not callable(handler):
            raise TypeError(f"A callable object or None is expected, got {handler!r}")
        settings.exception_handler = handler

    def get_exception_handler(self) -> Any:
        """The calling job's, or the process's."""
        settings = _settings_of_job()
        if settings is not None and settings.exception_handler is not None:
            return settings.exception_handler
        return super().get_exception_handler()

    def call_exception_handler(self, context: Any) -> None:
        """As the loop's; an error in a job's task goes to its own handler."""
        task = context.get("task") or context.get("future")
        job = job_of_task(task) if isinstance(task, asyncio.Task) else current_job()
        if job is not None and job.loop_settings is not None:
            handler = job.loop_settings.exception_handler
            if handler is not None:
                try:
                    handler(self, context)
                except Exception as exc:
                    context = {
                        "message": "Unhandled error in a task's exception handler",
                        "exception": exc,
                        "context": context,
                    }
                else:
                    return
        super().call_exception_handler(context)

    def remove_signal_handler(self, sig: int) -> bool:
        """As the loop's; a signal that is the parent's to send is ignored again."""
        removed: bool = super().remove_signal_handler(sig)
        if removed and sig in LEFT_TO_PARENT:
            signal.signal(sig, leave_to_parent)
        return removed


def _settings_of_job(make: bool = False) -> LoopSettings | None:
    """What the calling job has set of the loop; None outside of jobs, and where it has not."""
    job = current_job()
    if job is None:
        return None
    if job.loop_settings is None and make:
        job.loop_settings = LoopSettings()
    return job.loop_settings
