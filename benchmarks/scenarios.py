"""Measures that are more than one number: latency, memory, rest, recovery."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from . import procfs
from .arrival import ResultTimes
from .harness import PRIMER_TASKS, STALL_TIMEOUT, Run, Servers, start_run
from .pools import PoolSpec, usable_cpus
from .processes import BenchmarkError
from .stats import percentile

__all__ = ["latency", "memory", "recovery", "rest"]

#: Seeds the arrivals: the same for all pools.
SEED = 1
SHARES = (0.5, 0.9)
PERCENTILES = (0.5, 0.95, 0.99)
#: Tasks that say roughly how fast a pool is, and tasks of one load at most.
TRIAL, MOST = 300, 20_000
#: How often a load is offered that the client could not publish in time, and how much of it.
ATTEMPTS, LESS = 6, 0.85


def latency(pool: PoolSpec, servers: Servers, in_flight: int, seconds: float) -> dict[str, Any]:
    """Measure from publish to start and to result, in an open loop of no-op tasks.

    At shares of the capacity that the pool has while the client publishes, since the
    client uses CPU as well.
    """
    with start_run(pool, in_flight, servers, TRIAL + MOST * (1 + 2 * ATTEMPTS)) as run:
        run.prime(PRIMER_TASKS)
        rough = _capacity(run, TRIAL)
        capacity = _capacity(run, _fit(rough * min(seconds, 3.0)))
        return {
            "capacity": capacity,
            "loads": {
                str(share): _open_loop(run, servers, capacity * share, seconds) for share in SHARES
            },
        }


def _capacity(run: Run, count: int) -> float:
    first = run.take(count)
    run.client.call("flow", task=run.task("noop"), first=first, count=count, args=[], backlog=200)
    run.wait_ended(first, count)
    end = run.check(first, count)
    return count / (end - run.ledger.published[first])


def _fit(count: float) -> int:
    return int(min(max(count, 50), MOST))


def _open_loop(run: Run, servers: Servers, rate: float, seconds: float) -> dict[str, Any]:
    """Offer *rate* for some *seconds*, or as much of it as the client can publish."""
    for _ in range(ATTEMPTS):
        sample, late = _offer(run, servers, rate, _fit(rate * seconds))
        if late <= seconds / 10:
            return sample
        rate *= LESS
    raise BenchmarkError(f"the client could not publish {rate:.0f} tasks/s: {late:.1f} s late")


def _offer(run: Run, servers: Servers, rate: float, count: int) -> tuple[dict[str, Any], float]:
    """Return the times of *count* tasks, and how late the last was published."""
    first = run.take(count)
    url = servers.broker if run.pool.results_in_broker else servers.results
    with ResultTimes(url, run.pool.result_event) as results:
        late = run.client.call(
            "stream",
            task=run.task("noop"),
            first=first,
            args=[],
            rate=rate,
            count=count,
            seed=SEED,
        )
        run.wait_ended(first, count)
        keys = run.client.call("keys", first=first, count=count)
        _wait_for_keys(results, keys)
    run.check(first, count)
    published = run.ledger.published[first : first + count]
    started = run.ledger.started[first : first + count]
    sample = {
        "rate": rate,
        "start": _percentiles([b - a for a, b in zip(published, started, strict=True)]),
        "result": _percentiles(
            [results.times[key] - a for a, key in zip(published, keys, strict=True)]
        ),
    }
    return sample, late


def _wait_for_keys(results: ResultTimes, keys: Sequence[str]) -> None:
    deadline = time.monotonic() + STALL_TIMEOUT
    while not all(key in results.times for key in keys):
        if time.monotonic() > deadline:
            raise BenchmarkError("results were stored without a notification")
        time.sleep(0.01)


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{share * 100:.0f}": percentile(values, share) for share in PERCENTILES}


def rest(pool: PoolSpec, servers: Servers, seconds: float) -> dict[str, Any]:
    """Measure CPU, memory and start of a worker without work, with a slot for each CPU.

    So prefork has as many processes as asyncpool.
    """
    with start_run(pool, usable_cpus(), servers, 0) as run:
        run.prime(PRIMER_TASKS)
        before = procfs.cpu_seconds(run.worker.pid)
        time.sleep(seconds)
        after = procfs.cpu_seconds(run.worker.pid)
        return {
            "idle_cpu": None if before is None or after is None else (after - before) / seconds,
            "memory": procfs.pss_bytes(run.worker.pid),
            "startup": run.startup,
        }


def memory(pool: PoolSpec, servers: Servers, counts: Sequence[int]) -> dict[str, Any]:
    """Measure memory with tasks that wait."""
    points = [count for count in counts if count <= pool.most]
    with start_run(pool, max(points), servers, sum(points)) as run:
        run.prime(PRIMER_TASKS)
        sample: dict[str, Any] = {"memory": {"0": procfs.pss_bytes(run.worker.pid)}}
        first, running = run.take(max(points)), 0
        for count in points:
            run.publish("hold", first + running, count - running)
            run.wait_started(first, count)
            running = count
            sample["memory"][str(count)] = procfs.pss_bytes(run.worker.pid)
        if run.ledger.count_ended(first, running):
            raise BenchmarkError("tasks that should wait have ended")
        run.ledger.open_gate()
        run.wait_ended(first, running)
        run.check(first, running)
    return sample


def recovery(pool: PoolSpec, servers: Servers, in_flight: int) -> dict[str, Any]:
    """Kill a process of the pool under load; measure until a new one starts a task."""
    if not pool.has_processes:
        raise BenchmarkError("a pool of one process does not recover")
    count = in_flight * 100
    with start_run(pool, in_flight, servers, count) as run:
        run.prime(PRIMER_TASKS)
        first = run.take(count)
        run.publish("wait", first, count, [0.1], later=True)
        run.client.call("release")
        run.wait_started(first, in_flight)
        old = set(procfs.tree(run.worker.pid))
        victim = run.ledger.pids[first]
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        number = _first_in_new_process(run, first, count, old)
        lost = _wait_for_others(run, first, count, victim)
        return {"seconds": run.ledger.started[number] - killed, "lost": lost}


def _first_in_new_process(run: Run, first: int, count: int, old: set[int]) -> int:
    deadline = time.monotonic() + STALL_TIMEOUT
    while time.monotonic() < deadline:
        run.worker.check_alive()
        for number in range(first, first + count):
            if run.ledger.started[number] and run.ledger.pids[number] not in old:
                return number
        time.sleep(0.01)
    raise run.worker.error("has not replaced the process that was killed")


def _wait_for_others(run: Run, first: int, count: int, victim: int) -> int:
    """Wait until all tasks have ended but those that died with *victim*; count these."""
    deadline = time.monotonic() + STALL_TIMEOUT
    while time.monotonic() < deadline:
        run.worker.check_alive()
        missing = [n for n in range(first, first + count) if not run.ledger.times_ended(n)]
        if all(run.ledger.pids[number] == victim for number in missing):
            return len(missing)
        time.sleep(0.05)
    raise run.worker.error("has lost tasks of processes that were not killed")
