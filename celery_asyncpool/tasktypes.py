"""What kind of body a task has."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["HANDLERS", "body_attribute", "has_async_body"]

#: The methods of a task that a tracer calls beside its body.
HANDLERS = ("before_start", "on_success", "on_failure", "on_retry", "after_return")


def body_attribute(task: Any) -> str:
    """Name of the attribute that holds the task's own function.

    ``autoretry_for`` keeps it in ``_orig_run`` and puts a plain function into
    ``run``.
    """
    return "_orig_run" if hasattr(task, "_orig_run") else "run"


def has_async_body(task: Any) -> bool:
    """Whether the loop awaits the body of *task*; else it runs in a thread."""
    functions = (getattr(task, body_attribute(task)), type(task).__call__)
    return any(inspect.iscoroutinefunction(inspect.unwrap(function)) for function in functions)
