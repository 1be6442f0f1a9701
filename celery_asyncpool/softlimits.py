"""``on_soft_limit``: what a task wants called at its soft limit, instead of an exception.

It is an option of the task (``@app.task(on_soft_limit=fn)``) or a method of its
class: to Celery both are one attribute of the class, called with the task.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["check_hook", "hook_of"]

OPTION = "on_soft_limit"


def hook_of(task: Any) -> Callable[[Any], Any] | None:
    """Return the hook of *task* (or of its class), to be called with the task."""
    # Not what `task.on_soft_limit` gives: a function that is bound to the task,
    # and a partial that is bound or not, as the version of Python wants it.
    hook = inspect.getattr_static(task, OPTION, None)
    if isinstance(hook, staticmethod):
        return hook.__func__
    if isinstance(hook, classmethod):
        return getattr(task, OPTION)  # type: ignore[no-any-return]
    return hook  # type: ignore[no-any-return]


def check_hook(task: Any, default_soft: float | None) -> None:
    """Check the hook of *task*.

    *default_soft* is the soft limit of tasks without their own. Raises
    ``ValueError`` for a hook that cannot be called with a task, and for one that
    the task has itself and no soft limit would call. One that comes from a base
    class is there for those tasks that have a limit.
    """
    hook = hook_of(task)
    if hook is None:
        return
    if not callable(hook) or not _takes_the_task(hook):
        raise ValueError(
            f"{OPTION} of task {task.name} must be a function that takes the task, got {hook!r}"
        )
    is_its_own = OPTION in vars(type(task))
    if is_its_own and not task.soft_time_limit and not default_soft:
        raise ValueError(
            f"task {task.name} has {OPTION} and no soft limit that would call it: give it a "
            "soft_time_limit, or set task_soft_time_limit for all tasks"
        )


def _takes_the_task(hook: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(hook)
    except (TypeError, ValueError):
        return True  # a builtin that does not tell
    try:
        signature.bind(None)
    except TypeError:
        return False
    return True
