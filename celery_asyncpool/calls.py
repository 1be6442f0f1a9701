"""What a pool is given to call: Celery's tracer, or anything else.

Celery's consumer gives its tracer, with the name of a task. Bootsteps, and
extensions like celery-batches, give functions of their own, and want what these
return.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Task
from celery.app.trace import fast_trace_task, trace_task_ret

__all__ = ["is_traced", "name_of_call", "task_of_call"]


def is_traced(target: Any) -> bool:
    """Whether *target* is Celery's tracer: the task's name, id and request come first."""
    return target is fast_trace_task or target is trace_task_ret


def task_of_call(args: Sequence[Any]) -> Any:
    """Return the task that a function which is no tracer is given to run; None: there is none."""
    return args[0] if args and isinstance(args[0], Task) else None


def name_of_call(target: Any, args: Sequence[Any]) -> str:
    """Return what the log, and caps, know a call by: the name of a task or of a function."""
    if is_traced(target):
        return str(args[0])
    task = task_of_call(args)
    if task is not None:
        return str(task.name)
    return str(getattr(target, "__qualname__", type(target).__qualname__))
