"""The time limits of tasks: checked where they enter the worker."""

from __future__ import annotations

from typing import Any

from celery.utils.log import get_logger

from .core.timelimits import Limits, check_limits
from .settings import BadSetting
from .softlimits import check_hook
from .tasktypes import has_async_body

__all__ = ["check_tasks", "job_limits"]

logger = get_logger(__name__)


def job_limits(soft: Any, hard: Any, default: Limits, who: str) -> Limits:
    """Return the limits of one job: the call's or task's own, else the worker's *default*.

    Raises ``ValueError`` when its own are nonsense. A soft limit that the
    worker's hard one makes pointless, or the other way round, is no nonsense of
    the task's: the limit that is over first is the one that counts.
    """
    own = check_limits(soft, hard, who)
    limits = Limits(
        soft=default.soft if own.soft is None else own.soft,
        hard=default.hard if own.hard is None else own.hard,
    )
    if limits.soft is not None and limits.hard is not None and limits.soft >= limits.hard:
        limits.soft = None
    return limits


def check_tasks(app: Any, default: Limits) -> None:
    """Check the limits of the app's tasks; name those that threads enforce.

    Raises :exc:`~celery_asyncpool.settings.BadSetting` for a task whose limits, or
    whose ``on_soft_limit``, are nonsense. Limits of plain ``def`` tasks are raised
    in their threads, and cannot end a call into C: these tasks are listed in one
    line of the log.
    """
    in_threads = []
    for name, task in sorted(app.tasks.items()):
        try:
            limits = job_limits(task.soft_time_limit, task.time_limit, default, f"task {name}")
        except ValueError as exc:
            raise BadSetting(str(exc)) from None
        check_hook(task, default.soft)
        if name.startswith("celery.") or has_async_body(task):
            continue
        if limits.soft is not None or limits.hard is not None:
            in_threads.append(name)
    if in_threads:
        logger.info(
            "time limits of plain def tasks are raised in their threads, where a call into C "
            "only ends by itself; tasks with such limits: %s",
            ", ".join(in_threads),
        )
