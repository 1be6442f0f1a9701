"""Run one pool once: a fresh worker, a full queue, and a clock.

The clock starts when a queue that is already full is put where the worker
waits, and ends when the last result is stored, so that it measures processing
alone. Whatever is not exactly right is a :exc:`BenchmarkError`, never a number.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from . import procfs
from .ledger import VARIABLE, Ledger
from .pools import PoolSpec
from .processes import BenchmarkError, ClientProcess, Worker
from .workloads import Workload

__all__ = ["Run", "Servers", "start_run", "throughput"]

START_TIMEOUT = 60.0
#: Seconds without any progress after which a run is given up.
STALL_TIMEOUT = 60.0
#: Seconds between two looks at the ledger.
LOOK = 0.005
#: Tasks that run before the clock starts: every process is then connected.
PRIMER_TASKS = 200
#: Seconds of a trial that tells a rate well enough.
LONGER_TRIAL = 0.7

_run_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Servers:
    """Where everything is: URLs, and what ``"$NAME"`` in a workload's args stands for."""

    broker: str
    results: str
    far_broker: str = ""
    far_results: str = ""
    names: dict[str, Any] = field(default_factory=dict)

    def fill_in(self, args: tuple[Any, ...]) -> list[Any]:
        """Return *args* with names replaced."""
        return [
            self.names[arg[1:]] if isinstance(arg, str) and arg.startswith("$") else arg
            for arg in args
        ]


class Run:
    """A worker that is ready, its client and its ledger.

    Attributes:
        startup: seconds from its start until its first task had ended.
    """

    def __init__(self, pool: PoolSpec, worker: Worker, client: ClientProcess, ledger: Ledger):
        self.pool = pool
        self.worker = worker
        self.client = client
        self.ledger = ledger
        self.startup = 0.0
        self._next = self._first = 0

    def take(self, count: int) -> int:
        """Return the first of *count* new task numbers."""
        first, self._next = self._next, self._next + count
        return first

    def task(self, body: str, form: str | None = None) -> str:
        """The name of the task with *body*."""
        return f"{form or self.pool.form}.{body}"

    def publish_first(self) -> None:
        """Send the task by whose end the start-up time is told; the worker does not run yet."""
        self._first = self.take(1)
        self.publish("noop", self._first, 1)

    def get_ready(self) -> None:
        """Wait until the worker answers a ping and has run its first task."""
        deadline = time.monotonic() + START_TIMEOUT
        while not self.client.call("ping"):
            self.worker.check_alive()
            if time.monotonic() > deadline:
                raise self.worker.error(f"did not answer within {START_TIMEOUT:.0f} s")
        self.wait_ended(self._first, 1)
        self.startup = self.ledger.ended[self._first] - self.worker.started_at

    def prime(self, count: int) -> None:
        """Run some tasks, so that every process is connected."""
        first = self.take(count)
        self.publish("noop", first, count)
        self.wait_ended(first, count)
        self.check(first, count)

    def publish(
        self,
        body: str,
        first: int,
        count: int,
        args: list[Any] | None = None,
        *,
        form: str | None = None,
        later: bool = False,
        with_result: bool = True,
    ) -> None:
        """Send tasks, *later* to where they wait for the client's ``release``."""
        self.client.call(
            "publish",
            task=self.task(body, form),
            first=first,
            count=count,
            args=args or [],
            later=later,
            with_result=with_result,
        )

    def wait_ended(self, first: int, count: int) -> None:
        """Return when the tasks have ended."""
        self._wait(self.ledger.count_ended, first, count, "ended")

    def wait_started(self, first: int, count: int) -> None:
        """Return when the tasks have started."""
        self._wait(self.ledger.count_started, first, count, "started")

    def _wait(
        self, progress: Callable[[int, int], int], first: int, count: int, what: str
    ) -> None:
        seen, deadline = -1, 0.0
        while (now := progress(first, count)) < count:
            if now != seen:
                seen, deadline = now, time.monotonic() + STALL_TIMEOUT
            self.worker.check_alive()
            if time.monotonic() > deadline:
                raise self.worker.error(
                    f"stalls: for {STALL_TIMEOUT:.0f} s {now} of {count} tasks have {what}"
                )
            time.sleep(LOOK)

    def check(self, first: int, count: int, with_result: bool = True) -> float:
        """Check each task and its result; return when the last one was complete.

        Raises :exc:`BenchmarkError` unless each ran exactly once with the right result.
        """
        at = max(self.ledger.ended[first : first + count])
        if with_result and self.pool.runs_tasks:
            answer = self.client.call("results", first=first, count=count, timeout=STALL_TIMEOUT)
            if answer["wrong"]:
                raise self.worker.error(f"gave wrong results: {answer['wrong']}")
            at = answer["at"]
        counts = {
            (self.ledger.times_started(number), self.ledger.times_ended(number))
            for number in range(first, first + count)
        }
        if counts != {(1, 1)}:
            raise self.worker.error(f"ran tasks this often (started, ended): {sorted(counts)}")
        return at


@contextlib.contextmanager
def start_run(
    pool: PoolSpec, in_flight: int, servers: Servers, tasks: int, *, is_far: bool = False
) -> Iterator[Run]:
    """Start a worker with *in_flight* slots and room in its ledger for *tasks*; yield the run."""
    name = f"run{next(_run_numbers)}-{os.getpid()}@benchmarks"
    with redis.Redis.from_url(servers.results) as client:
        client.flushall()  # a run that failed may have left something
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        path = Path(folder, "ledger")
        ledger = Ledger.create(path, tasks + PRIMER_TASKS + 1)
        near = _environment(path, name, servers.broker, servers.results)
        far = _environment(path, name, servers.far_broker, servers.far_results)
        client_command = [
            *pool.client_command(),
            *(str(path), servers.results, name),
        ]
        worker = Worker(
            pool.command(name, name, in_flight), {**(far if is_far else near), **pool.environment}
        )
        with ClientProcess(client_command, near) as publisher:
            run = Run(pool, worker, publisher, ledger)
            run.publish_first()
            with worker:
                run.get_ready()
                yield run


def _environment(ledger: Path, queue: str, broker: str, results: str) -> dict[str, str]:
    return {
        VARIABLE: str(ledger),
        "BENCHMARK_QUEUE": queue,
        "CELERY_BROKER_URL": broker,
        "CELERY_RESULT_BACKEND": results,
        "C_FORCE_ROOT": "1",
    }


def throughput(
    pool: PoolSpec, row: Workload, servers: Servers, seconds: float, tasks: int | None = None
) -> dict[str, Any]:
    """Run tasks of *row* through a fresh worker; return one sample.

    After a short trial: it warms up, and where *tasks* is not given it says how many
    fill the *seconds*.
    """
    args = servers.fill_in(row.args)
    room = row.trial + (tasks or 2 * row.most)
    with start_run(pool, row.in_flight, servers, room, is_far=row.is_far) as run:
        run.prime(PRIMER_TASKS)
        rest = procfs.pss_bytes(run.worker.pid)
        took, _ = _timed(run, row, args, row.trial)
        tasks = tasks or _find_count(run, row, args, row.trial / took, seconds)
        took, cpu = _timed(run, row, args, tasks)
    return {
        "rate": tasks / took,
        "tasks": tasks,
        "seconds": took,
        "cpu_per_1000": None if cpu is None else cpu * 1000 / tasks,
        "startup": run.startup,
        "memory": rest,
    }


def _find_count(run: Run, row: Workload, args: list[Any], rate: float, seconds: float) -> int:
    """Return how many tasks fill the *seconds*; what a short trial says is checked by a longer."""
    count = row.tasks_for(rate, min(LONGER_TRIAL, seconds))
    if count > row.trial:
        took, _ = _timed(run, row, args, count)
        rate = count / took
    return row.tasks_for(rate, seconds)


def _timed(run: Run, row: Workload, args: list[Any], tasks: int) -> tuple[float, float | None]:
    """Return the seconds from a full queue to the last result, and the CPU seconds."""
    first = run.take(tasks)
    run.publish(
        row.body, first, tasks, args, form=row.form, later=True, with_result=row.with_result
    )
    if run.ledger.count_started(first, tasks):
        raise BenchmarkError("tasks started before the clock")
    before = procfs.cpu_seconds(run.worker.pid)
    start = run.client.call("release")
    run.wait_ended(first, tasks)
    end = run.check(first, tasks, row.with_result)
    after = procfs.cpu_seconds(run.worker.pid)
    if start is None:
        start = min(run.ledger.started[first : first + tasks])
    return end - start, None if before is None or after is None else after - before
