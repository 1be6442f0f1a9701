"""The pools that are compared, and how each is started, as its documentation says."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from typing import Any

from .peers import environment

__all__ = ["ALL_POOLS", "DEFAULT_POOLS", "POOLS", "PoolSpec", "usable_cpus", "with_settings"]

#: Options of ``celery worker`` that all pools get.
COMMON_OPTIONS = ("-l", "WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat")


def usable_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """One way to run a worker.

    Attributes:
        options: of ``celery worker``, beside ``-c``.
        form: which form of a task suits it: ``"sync"`` or ``"async"``.
        most: tasks that it can sensibly have in flight; a row with more omits it.
        why: why not more.
        environment: variables of the worker.
        runs_tasks: whether bodies run and results are stored (not in ``ceiling``).
        has_processes: whether a process of it can be killed without ending the worker.
        peer: the environment under ``peers/`` that it needs, if any.
        result_event: the Redis command that stores a result.
        results_in_broker: whether results are kept beside the queue.
        process_per_slot: whether each slot is a process, which takes time to start.
    """

    options: tuple[str, ...]
    form: str
    most: int = 100_000
    why: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    runs_tasks: bool = True
    has_processes: bool = False
    peer: str | None = None
    result_event: str = "set"
    results_in_broker: bool = False
    process_per_slot: bool = False

    @property
    def is_celery(self) -> bool:
        """Whether it is a pool of Celery's worker, which has rows that others have not."""
        return type(self) is PoolSpec

    def command(self, name: str, queue: str, in_flight: int) -> list[str]:
        """Return the command line of a worker with room for *in_flight* tasks."""
        python = environment(self.peer) / "python" if self.peer else sys.executable
        return [
            *(str(python), "-m", "celery", "-A", "benchmarks.app", "worker"),
            *("-n", name, "-Q", queue, "-c", str(in_flight)),
            *self.options,
            *COMMON_OPTIONS,
        ]

    def client_command(self) -> list[str]:
        """Return the command line of the client, without its arguments."""
        return [sys.executable, "-m", "benchmarks.celery_client"]


class TaskiqSpec(PoolSpec):
    """taskiq has no ``-c``: its slots are per process."""

    def command(self, name: str, queue: str, in_flight: int) -> list[str]:
        return [
            *(str(environment("taskiq") / "taskiq"), "worker"),
            "benchmarks.peers.taskiq.adapter:broker",
            *("--workers", str(min(usable_cpus(), in_flight))),
            *("--max-async-tasks", str(-(-in_flight // usable_cpus()))),
            *("--log-level", "WARNING"),
        ]

    def client_command(self) -> list[str]:
        return [str(environment("taskiq") / "python"), "-m", "benchmarks.peers.taskiq.adapter"]


class ArqSpec(PoolSpec):
    """arq has one process per worker: as many workers as CPUs share the slots."""

    def command(self, name: str, queue: str, in_flight: int) -> list[str]:
        return [
            *(str(environment("arq") / "python"), "-m", "benchmarks.peers.arq.workers"),
            *(str(min(usable_cpus(), in_flight)), str(in_flight)),
        ]

    def client_command(self) -> list[str]:
        return [str(environment("arq") / "python"), "-m", "benchmarks.peers.arq.adapter"]


class DramatiqSpec(PoolSpec):
    """dramatiq runs each coroutine from a thread that waits for it; threads are per process."""

    def command(self, name: str, queue: str, in_flight: int) -> list[str]:
        return [
            str(environment("dramatiq") / "dramatiq"),
            "benchmarks.peers.dramatiq.adapter",
            *("--processes", str(min(usable_cpus(), in_flight))),
            *("--threads", str(-(-in_flight // usable_cpus()))),
        ]

    def client_command(self) -> list[str]:
        return [str(environment("dramatiq") / "python"), "-m", "benchmarks.peers.dramatiq.adapter"]


def with_settings(settings: dict[str, Any]) -> dict[str, str]:
    """Return the environment of a worker with *settings* in its app."""
    return {"BENCHMARK_SETTINGS": json.dumps(settings)}


def _custom(path: str) -> dict[str, str]:
    return {"CELERY_CUSTOM_WORKER_POOL": path}


POOLS = {
    "asyncpool": PoolSpec(
        ("-P", "asyncpool", "--processes", str(usable_cpus())), "async", has_processes=True
    ),
    "asyncpool-off": PoolSpec(
        ("-P", "asyncpool", "--processes", str(usable_cpus())),
        "async",
        environment=with_settings({"asyncpool_redis_batching": False}),
        has_processes=True,
    ),
    "prefork": PoolSpec(
        ("-P", "prefork"),
        "sync",
        most=64,
        why="one process for each task",
        has_processes=True,
        process_per_slot=True,
    ),
    "gevent": PoolSpec(("-P", "gevent"), "sync"),
    "threads": PoolSpec(("-P", "threads"), "sync", most=2000, why="one thread for each task"),
    "solo": PoolSpec(("-P", "solo"), "sync", most=1, why="one task at a time"),
    "ceiling": PoolSpec(
        ("-P", "custom"),
        "sync",
        environment=_custom("benchmarks.ceiling:Pool"),
        runs_tasks=False,
    ),
    "ceiling-batches": PoolSpec(
        ("-P", "custom"),
        "sync",
        environment=_custom("benchmarks.ceiling:BatchingPool"),
        runs_tasks=False,
    ),
    "celery-aio-pool": PoolSpec(
        ("-P", "custom"),
        "async",
        most=1,
        why="one task at a time, whatever -c says",
        environment=_custom("celery_aio_pool.pool:AsyncIOPool"),
        peer="celery_aio_pool",
    ),
    "taskiq": TaskiqSpec((), "async", peer="taskiq", has_processes=True),
    "arq": ArqSpec((), "async", peer="arq", results_in_broker=True),
    "dramatiq": DramatiqSpec(
        (),
        "async",
        most=2000,
        why="one thread for each task",
        # An idle consumer sleeps for up to this many milliseconds; by default, a second.
        environment={"dramatiq_worker_timeout": "100"},
        has_processes=True,
        peer="dramatiq",
        result_event="lpush",
    ),
}

#: Without ``--pools``.
DEFAULT_POOLS = ("asyncpool", "prefork", "gevent", "threads", "ceiling")
#: With ``--all``.
ALL_POOLS = tuple(POOLS)
