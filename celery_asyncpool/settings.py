"""Every setting of the pool: its name, default, check and error.

Nothing else knows a default. Settings are plain Celery configuration, read
from ``app.conf``: ``app.conf.asyncpool_threads = 8``, a ``celeryconfig``
module, or ``CELERY_ASYNCPOOL_THREADS = 8`` in Django's settings with
``app.config_from_object("django.conf:settings", namespace="CELERY")``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click
from celery.exceptions import ImproperlyConfigured

from .core.maintenance import spread
from .core.numbers import as_number, as_whole_number
from .core.timelimits import Limits, check_limits
from .cpus import usable_cpus

__all__ = [
    "DEFAULT_SLOTS_PER_PROCESS",
    "NAMES",
    "BadSetting",
    "Settings",
    "blocking_calls",
    "check_platform",
    "configured_processes",
    "configured_slots",
]

#: Slots per process where neither ``-c`` nor ``worker_concurrency`` says a number.
DEFAULT_SLOTS_PER_PROCESS = 100

DEFAULT_THREADS = 32

LOOPS = ("uvloop", "asyncio")

DEFAULT_GC_THRESHOLD = 10_000

#: All settings that are ours; those of Celery that the pool reads are not.
NAMES = (
    "asyncpool_processes",
    "asyncpool_threads",
    "asyncpool_loop",
    "asyncpool_cancel_grace",
    "asyncpool_drain_timeout",
    "asyncpool_block_warning",
    "asyncpool_blocking_calls",
    "asyncpool_lifespan_timeout",
    "asyncpool_max_crashes",
    "asyncpool_limits",
    "asyncpool_redis_batching",
    "asyncpool_gc_threshold",
)

#: What a text says where True or False is wanted, in any case: Celery's own words.
TRUTHS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}

BLOCKING_CALLS = ("warn", "error", "allow")


class BadSetting(ImproperlyConfigured, click.ClickException):
    """A setting that cannot be: one sentence with its name, value and what is allowed.

    As a ``ClickException`` it ends ``celery worker`` with that sentence instead
    of a traceback; as an ``ImproperlyConfigured`` it is what programs that build
    a ``Worker`` themselves expect.
    """

    def __init__(self, message: str) -> None:
        click.ClickException.__init__(self, f"celery_asyncpool: {message}")


@dataclass(frozen=True, slots=True)
class Settings:
    """The checked settings of one worker."""

    #: ``worker_concurrency`` or ``-c``: tasks that the worker runs at once.
    slots: int
    #: ``asyncpool_processes`` or ``--processes``: over how many the slots are
    #: spread, at most.
    max_processes: int
    #: ``asyncpool_threads``: plain ``def`` bodies that one process runs at once.
    threads: int
    #: ``asyncpool_loop``: ``"uvloop"`` or ``"asyncio"``.
    loop: str
    #: ``asyncpool_cancel_grace``: seconds that a cancelled body has to end.
    cancel_grace: float
    #: ``asyncpool_drain_timeout``: seconds that the neighbours of a body that
    #: refuses to end have before their process is killed.
    drain_timeout: float
    #: ``asyncpool_block_warning``: seconds of a blocked loop that are worth a
    #: warning; 0: none.
    block_warning: float
    #: ``asyncpool_blocking_calls``: ``"warn"``, ``"error"`` or ``"allow"`` calls that
    #: block an event loop.
    blocking_calls: str
    #: ``asyncpool_lifespan_timeout``: seconds for the start and for the end of a lifespan.
    lifespan_timeout: float
    #: ``asyncpool_max_crashes``: processes that one task may take down before it
    #: fails for good.
    max_crashes: int
    #: ``asyncpool_limits``: names of tasks, or patterns, and how many of these may
    #: run at once.
    caps: tuple[tuple[str, int], ...]
    #: ``asyncpool_redis_batching``: whether Redis is used in batches.
    redis_batching: bool
    #: ``asyncpool_gc_threshold``: new objects after which the garbage collector looks
    #: through them; 0: as Python, or the app, has set it.
    gc_threshold: int
    #: ``worker_max_tasks_per_child``: tasks after which a process is replaced.
    max_tasks: int | None
    #: ``worker_max_memory_per_child``: KiB of resident memory above which it is.
    max_memory: int | None
    #: ``task_soft_time_limit`` and ``task_time_limit``, for tasks without their own.
    limits: Limits
    #: ``worker_proc_alive_timeout``: seconds a process may take to come up.
    start_timeout: float

    @classmethod
    def from_conf(
        cls,
        conf: Mapping[str, Any],
        slots: int,
        soft_time_limit: Any = None,
        time_limit: Any = None,
        max_tasks: Any = None,
        max_memory: Any = None,
    ) -> Settings:
        """Read and check all settings; raises :exc:`BadSetting`.

        *slots* is what Celery made of ``-c``, ``worker_concurrency`` and
        ``--autoscale``; the others are what it made of ``--soft-time-limit``,
        ``--time-limit``, ``--max-tasks-per-child``, ``--max-memory-per-child``
        and their settings.
        """
        return cls(
            slots=slots,
            max_processes=configured_processes(conf),
            threads=_whole_number(conf, "asyncpool_threads", DEFAULT_THREADS),
            loop=_choice(conf, "asyncpool_loop", LOOPS),
            cancel_grace=_seconds(conf, "asyncpool_cancel_grace", 5.0),
            drain_timeout=_seconds(conf, "asyncpool_drain_timeout", 300.0),
            block_warning=_seconds(conf, "asyncpool_block_warning", 1.0, zero=True),
            blocking_calls=blocking_calls(conf),
            lifespan_timeout=_seconds(conf, "asyncpool_lifespan_timeout", 30.0),
            max_crashes=_whole_number(conf, "asyncpool_max_crashes", 3),
            caps=_caps(conf),
            redis_batching=_yes_or_no(conf, "asyncpool_redis_batching", True),
            gc_threshold=_whole_number(
                conf, "asyncpool_gc_threshold", DEFAULT_GC_THRESHOLD, least=0
            ),
            max_tasks=_whole_number_or_none("worker_max_tasks_per_child", max_tasks),
            max_memory=_whole_number_or_none("worker_max_memory_per_child", max_memory),
            limits=_limits(soft_time_limit, time_limit),
            start_timeout=_seconds(conf, "worker_proc_alive_timeout", 4.0),
        )

    @property
    def processes(self) -> int:
        """Processes at the start; never more than slots."""
        return spread(self.slots, self.max_processes)[0]

    @property
    def slots_per_process(self) -> int:
        """Slots of each process at the start, so that all together are at least ``slots``."""
        return spread(self.slots, self.max_processes)[1]


def configured_slots(conf: Mapping[str, Any], asked: Any = None) -> int:
    """Return the slots that *asked* (``-c``), else ``worker_concurrency``, stands for.

    Nothing, 0 and ``"auto"`` stand for the default, 100 for each process: to Celery
    ``auto`` is as good as nothing for all pools but prefork. Raises :exc:`BadSetting`.
    """
    value = asked or conf.get("worker_concurrency")
    is_auto = isinstance(value, str) and value.strip().lower() == "auto"
    if value is None or is_auto or as_number(value) == 0:
        return DEFAULT_SLOTS_PER_PROCESS * configured_processes(conf)
    return _check_whole_number("worker_concurrency", value)


def configured_processes(conf: Mapping[str, Any]) -> int:
    """Return ``asyncpool_processes``, by default the CPUs this process may use."""
    return _whole_number(conf, "asyncpool_processes", usable_cpus())


def blocking_calls(conf: Mapping[str, Any]) -> str:
    """Return ``asyncpool_blocking_calls``: what a call that blocks an event loop gets."""
    return _choice(conf, "asyncpool_blocking_calls", BLOCKING_CALLS)


def check_platform(platform: str = sys.platform) -> None:
    """Raise :exc:`BadSetting` where the pool cannot run at all."""
    if platform == "win32":
        raise BadSetting(
            "the pool runs on Linux and macOS, not on Windows: it forks processes and uses "
            "uvloop; on Windows use Celery's threads pool (-P threads), or run it in WSL"
        )
    if os.environ.get("USE_FAST_LOCALS"):
        raise BadSetting(
            f"USE_FAST_LOCALS must not be set, got {os.environ['USE_FAST_LOCALS']!r} (environment "
            "variable): it ties current_task to threads, and here many tasks share one"
        )


def _whole_number(conf: Mapping[str, Any], name: str, default: int, *, least: int = 1) -> int:
    value = conf.get(name)
    return default if value is None else _check_whole_number(name, value, least)


def _yes_or_no(conf: Mapping[str, Any], name: str, default: bool) -> bool:
    value = conf.get(name)
    if value is None:
        return default
    if isinstance(value, str):
        value = TRUTHS.get(value.strip().lower(), value)
    if not isinstance(value, bool):
        raise BadSetting(f"{name} must be True or False, got {value!r}")
    return value


def _whole_number_or_none(name: str, value: Any) -> int | None:
    """Check a limit of Celery's; 0 means none there, as it does for prefork."""
    is_none = value is None or as_number(value) == 0
    return None if is_none else _check_whole_number(name, value)


def _check_whole_number(name: str, value: Any, least: int = 1) -> int:
    number = as_whole_number(value)
    if number is None or number < least:
        raise BadSetting(f"{name} must be a whole number of at least {least}, got {value!r}")
    return number


def _seconds(conf: Mapping[str, Any], name: str, default: float, *, zero: bool = False) -> float:
    """Return the seconds of the setting *name*; *zero*: whether 0 is one of them."""
    value = conf.get(name)
    if value is None:
        return default
    number = as_number(value)
    if number is None or not (number > 0 or (zero and number == 0)):
        least = "of at least 0" if zero else "above 0"
        raise BadSetting(f"{name} must be a number of seconds {least}, got {value!r}")
    return float(number)


def _caps(conf: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    value = conf.get("asyncpool_limits")
    if value is None:
        return ()
    if not isinstance(value, Mapping) or not all(_is_name(key) for key in value):
        raise BadSetting(
            "asyncpool_limits must be a dictionary of task names or patterns, with whole numbers "
            f"of at least 1, got {value!r}"
        )
    return tuple(
        (pattern, _check_whole_number(f"asyncpool_limits[{pattern!r}]", limit))
        for pattern, limit in value.items()
    )


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and key.strip() != ""


def _limits(soft: Any, hard: Any) -> Limits:
    try:
        return check_limits(soft, hard, "all tasks (task_soft_time_limit, task_time_limit)")
    except ValueError as exc:
        raise BadSetting(str(exc)) from None


def _choice(conf: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> str:
    """Return the setting *name*; the first of *allowed* is the default."""
    value = conf.get(name)
    if value is None:
        return allowed[0]
    if value not in allowed:
        words = " or ".join(repr(word) for word in allowed)
        raise BadSetting(f"{name} must be {words}, got {value!r}")
    return str(value)
