"""Functions that the pool is given to call in the place of Celery's tracer.

A bootstep may give one of its own, and celery-batches gives one with the task
that it is to run. Their callers get what they return.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from ..calls import task_of_call
from .forks import ends_copies
from .jobcontext import JobContext
from .tasks import call_body, run_body
from .threads import BodyThreads
from .trace import drive, settle

__all__ = ["call_function"]


async def call_function(
    threads: BodyThreads, job: JobContext, function: Callable[..., Any], args: Any, kwargs: Any
) -> Any:
    """Call *function* and return its value, awaited; in a thread if it is no ``async def``."""
    call = functools.partial(_call, job, function, args, kwargs)
    if inspect.iscoroutinefunction(function):
        return await drive(call)
    return await threads.run(call)


def _call(job: JobContext, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    call = functools.partial(function, *args, **kwargs)
    if task_of_call(args) is not None:
        with ends_copies:
            return settle(call())  # the limits are those of the task's own body
    return run_body(job, None, functools.partial(call_body, job, call))
