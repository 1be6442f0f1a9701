"""The time limits of tasks and calls: which of them count, and whose are nonsense.

A *task* whose own limits, or whose ``on_soft_limit``, are nonsense is named when
the worker starts, and its calls fail, as Celery refuses them at the client. A
*call* that brings nonsense runs under what is left of its limits: its message
may come from any producer, and no other pool refuses it.
"""

from __future__ import annotations

from typing import Any

from celery.utils.log import get_logger

from .core.timelimits import Limits, check_limits, is_no_limit, sensible_limit
from .softlimits import check_hook
from .tasktypes import has_async_body

__all__ = [
    "NO_TIME_LIMITS",
    "Refusals",
    "call_time_limits",
    "job_limits",
    "tell_left_out",
    "tell_of_threads",
]

logger = get_logger(__name__)

#: Hard and soft limit of a message that has none, in Celery's order.
NO_TIME_LIMITS: tuple[float | None, float | None] = (None, None)


def call_time_limits(value: Any, who: str) -> tuple[float | None, float | None]:
    """Return the hard and the soft limit of a message whose ``timelimit`` is *value*.

    What cannot be a limit is left out, with one line in the log that names *who*
    it is: a call that is as good as any other is not lost for it.
    """
    if value is None:
        return NO_TIME_LIMITS
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        logger.warning(
            "%s runs without the limits of its message, whose timelimit must be "
            "[time_limit, soft_time_limit], got %r",
            who,
            value,
        )
        return NO_TIME_LIMITS
    hard, soft = (sensible_limit(limit) for limit in value)
    junk = [
        f"{name} {limit!r}"
        for name, limit in zip(("time_limit", "soft_time_limit"), value, strict=True)
        if not is_no_limit(limit) and sensible_limit(limit) is None
    ]
    if junk:
        logger.warning(
            "%s runs without the %s of its message: a limit must be a number of seconds above 0",
            who,
            " and the ".join(junk),
        )
    return hard, soft


def job_limits(soft: Any, hard: Any, default: Limits) -> Limits:
    """Return the limits of one job: the call's or task's own, else the worker's *default*.

    What cannot be a limit counts as none. The limit that is over first is the one
    that counts: a soft limit that the hard one makes pointless is left out.
    """
    soft, hard = sensible_limit(soft), sensible_limit(hard)
    limits = Limits(
        soft=default.soft if soft is None else soft,
        hard=default.hard if hard is None else hard,
    )
    if limits.soft is not None and limits.hard is not None and limits.soft >= limits.hard:
        limits.soft = None
    return limits


def tell_left_out(limits: Limits, soft: Any, who: str) -> None:
    """Say in the log that *who* has no soft limit, if *soft* is not among its *limits*."""
    if limits.soft is None and sensible_limit(soft) is not None:
        logger.warning(
            "%s runs without its soft_time_limit of %ss: its time_limit of %ss is over first",
            who,
            soft,
            limits.hard,
        )


class Refusals:
    """The tasks of *app* whose own options are nonsense, so that their calls fail.

    Arguments:
        app: its tasks are checked now, and named in the log.
        default: the worker's limits, for tasks without their own.
    """

    def __init__(self, app: Any, default: Limits) -> None:
        self._default = default
        self._tasks: dict[str, Any] = {}
        for name, task in sorted(app.tasks.items()):
            fault = self._fault(task)
            if fault is not None:
                self._tasks[name] = task
                logger.error("calls of task %s fail, all other tasks run: %s", name, fault)
            elif _is_pointless(task):
                logger.warning(
                    "soft_time_limit of task %s is left out: it is not less than its "
                    "time_limit, %rs",
                    name,
                    task.time_limit,
                )

    def check(self, name: str, own_hard: float | None, own_soft: float | None) -> None:
        """Raise ``ValueError`` for a call of the task *name* that cannot run.

        *own_hard* and *own_soft* are limits of the call itself: it runs if these
        are what its task lacks. And it runs when ``celery control time_limit`` has
        given the task others.
        """
        task = self._tasks.get(name)
        fault = self._fault(task, own_hard, own_soft) if task is not None else None
        if fault is not None:
            raise ValueError(fault)

    def _fault(
        self, task: Any, own_hard: float | None = None, own_soft: float | None = None
    ) -> str | None:
        soft = task.soft_time_limit if own_soft is None and not _is_pointless(task) else None
        hard = task.time_limit if own_hard is None else None
        try:
            check_limits(soft, hard, f"task {task.name}")
            check_hook(task, own_soft or self._default.soft)
        except ValueError as exc:
            return str(exc)
        return None


def _is_pointless(task: Any) -> bool:
    """Whether the soft limit of *task* is its hard one, which Celery allows."""
    soft, hard = sensible_limit(task.soft_time_limit), sensible_limit(task.time_limit)
    return soft is not None and soft == hard


def tell_of_threads(app: Any, default: Limits) -> None:
    """Name, in one line of the log, the tasks whose limits their threads enforce.

    Limits of plain ``def`` tasks are raised in their threads, and cannot end a
    call into C.
    """
    in_threads = []
    for name, task in sorted(app.tasks.items()):
        if name.startswith("celery.") or has_async_body(task):
            continue
        limits = job_limits(task.soft_time_limit, task.time_limit, default)
        if limits.soft is not None or limits.hard is not None:
            in_threads.append(name)
    if in_threads:
        logger.info(
            "time limits of plain def tasks are raised in their threads, where a call into C "
            "only ends by itself; tasks with such limits: %s",
            ", ".join(in_threads),
        )
