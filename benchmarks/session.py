"""One session: which pool runs what, in which order; what went wrong stays in its own row."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import redis

from . import peers, results, scenarios, servers
from .harness import Servers, throughput
from .options import SCENARIOS
from .pools import POOLS
from .processes import BenchmarkError
from .workloads import WORKLOADS, Workload

__all__ = ["Session", "Step", "why_not"]

#: How many slots a pool has in the scenarios, and how many tasks wait in "memory".
SCENARIO_SLOTS = 20
MEMORY_POINTS = (10, 50, 1000, 10_000)
#: Seconds of one load of "latency", and of idleness.
LOAD_SECONDS, IDLE_SECONDS = 5.0, 20.0

#: Errors after which a pool is not asked again in a row: it has no figure there anyway.
PATIENCE = 2

#: Seconds that runs take beside their timed part, roughly, on two CPUs.
OVERHEAD, PER_PROCESS = 5.0, 0.05
TYPICAL = {"latency": 19.0, "memory": 19.0, "rest": 25.0, "recovery": 16.0}


class Step(NamedTuple):
    """One pool runs one row or scenario once."""

    round: int
    name: str
    pool: str


class Session:
    """Runs all steps, and saves what there is after each.

    Attributes:
        data: what is saved.
        path: where.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._took: dict[tuple[str, str], float] = {}
        self._started = 0.0
        self.path = args.output or results.new_path(args.quick)
        names = args.only
        self.data: dict[str, Any] = {
            **results.describe(),
            "broker": _without_password(args.broker),
            "rounds": args.rounds,
            "scenario_rounds": args.scenario_rounds,
            "seconds": args.seconds,
            "is_quick": args.quick,
            "is_complete": False,
            "rows": {n: self._empty_row(WORKLOADS[n]) for n in names if n in WORKLOADS},
            "scenarios": {n: self._empty_scenario(n) for n in names if n in SCENARIOS},
        }

    @property
    def has_errors(self) -> bool:
        """Whether anything went wrong."""
        tables = [row["samples"] for row in self.data["rows"].values()]
        tables += self.data["scenarios"].values()
        return any("error" in s for pools in tables for runs in pools.values() for s in runs)

    def steps(self) -> Iterator[Step]:
        """Yield all that is to do, in order: pools take turns within a round."""
        for number in range(1, self._args.rounds + 1):
            for name, row in self.data["rows"].items():
                yield from (Step(number, name, pool) for pool in row["samples"])
            if number <= self._args.scenario_rounds:
                for name, pools in self.data["scenarios"].items():
                    yield from (Step(number, name, pool) for pool in pools)

    def estimate(self, steps: list[Step]) -> float:
        """Return how many seconds *steps* take, as far as one can tell by now."""
        return sum(self._took.get((s.name, s.pool)) or self._guess(s) for s in steps)

    def run(self) -> None:
        """Do all steps; an error is noted, and the others go on."""
        self._install_peers()
        todo = list(self.steps())
        print(f"{len(todo)} runs, about {_minutes(self.estimate(todo))}", flush=True)
        self._started = time.monotonic()
        bodies = {WORKLOADS[name].body for name in self.data["rows"]}
        with servers.started(self._args.broker, bodies) as running:
            self.data["versions"].update(_server_versions(running))
            while todo and self._has_time(todo):
                number = todo[0].round
                while todo and todo[0].round == number:
                    self._do(todo.pop(0), running, todo)
        self.data["is_complete"] = True
        self.data["duration"] = time.monotonic() - self._started
        self.save()

    def _has_time(self, todo: list[Step]) -> bool:
        """Whether the next round fits into ``--minutes``; the first always does."""
        number = todo[0].round
        if self._args.minutes is None or number == 1:
            return True
        end = time.monotonic() + self.estimate([step for step in todo if step.round == number])
        if end <= self._started + self._args.minutes * 60:
            return True
        print(f"no time for round {number}")
        self.data["rounds"] = number - 1
        self.data["scenario_rounds"] = min(self.data["scenario_rounds"], number - 1)
        return False

    def save(self) -> None:
        """Write what there is."""
        results.save(self.data, self.path)

    def _do(self, step: Step, running: Servers, left: list[Step]) -> None:
        """Do one step, save it and say so; *left* are those that come after it."""
        if sum("error" in sample for sample in self._runs(step)) >= PATIENCE:
            return
        self._runs(step).append(self._try(step, running))
        self.save()
        print(
            f"{_line(step, self._runs(step)[-1])}  "
            f"({len(left)} to go, {_minutes(self.estimate(left))})",
            flush=True,
        )

    def _try(self, step: Step, running: Servers) -> dict[str, Any]:
        """Return a sample, or what went wrong."""
        start = time.monotonic()
        try:
            sample = self._sample(step, running)
        except BenchmarkError as exc:
            sample = {"error": str(exc)}
        except Exception:  # the others go on, and the report names it
            sample = {"error": traceback.format_exc()}
        if "error" in sample:
            print(f"{step.name}, {step.pool}: {sample['error']}", file=sys.stderr)
        self._took[step.name, step.pool] = time.monotonic() - start
        return sample

    def _sample(self, step: Step, running: Servers) -> dict[str, Any]:
        if step.name in SCENARIOS:
            return self._scenario_sample(step, running)
        row = self._workload(step.name)
        tasks = self.data["rows"][step.name]["tasks"]
        sample = throughput(
            POOLS[step.pool], row, running, self._args.seconds, tasks.get(step.pool)
        )
        tasks[step.pool] = sample["tasks"]
        return sample

    def _scenario_sample(self, step: Step, running: Servers) -> dict[str, Any]:
        spec, quick = POOLS[step.pool], self._args.quick
        slots = min(SCENARIO_SLOTS, spec.most)
        if step.name == "latency":
            return scenarios.latency(spec, running, slots, 1.0 if quick else LOAD_SECONDS)
        if step.name == "memory":
            return scenarios.memory(spec, running, MEMORY_POINTS[:2] if quick else MEMORY_POINTS)
        if step.name == "rest":
            return scenarios.rest(spec, running, 1.0 if quick else IDLE_SECONDS)
        return scenarios.recovery(spec, running, slots)

    def _runs(self, step: Step) -> list[dict[str, Any]]:
        if step.name in SCENARIOS:
            return self.data["scenarios"][step.name][step.pool]
        return self.data["rows"][step.name]["samples"][step.pool]

    def _workload(self, name: str) -> Workload:
        row = WORKLOADS[name]
        return row.in_small() if self._args.quick else row

    def _empty_row(self, row: Workload) -> dict[str, Any]:
        """Return *row* without samples: which pools take part, and why the others do not."""
        args = self._args
        reasons = {p: why_not(p, row, args.broker, args.peers_everywhere) for p in args.pools}
        return {
            "title": row.title,
            "in_flight": row.in_flight,
            "tasks": {},
            "omitted": {pool: reason for pool, reason in reasons.items() if reason},
            "samples": {pool: [] for pool, reason in reasons.items() if reason is None},
        }

    def _empty_scenario(self, name: str) -> dict[str, list[Any]]:
        return {pool: [] for pool in self._args.pools if self._takes_part(pool, name)}

    def _takes_part(self, pool: str, scenario: str) -> bool:
        spec = POOLS[pool]
        if not spec.runs_tasks or spec.most < SCENARIO_SLOTS:
            return False
        if spec.peer is not None and not self._args.peers_everywhere:
            return False
        if not spec.is_celery and self._args.broker != "redis":
            return False
        return scenario != "recovery" or spec.has_processes

    def _install_peers(self) -> None:
        """Make the environments that are needed; leave out what cannot be installed."""
        for pool in self._args.pools:
            name = POOLS[pool].peer
            if name is None or not any(step.pool == pool for step in self.steps()):
                continue
            try:
                peers.environment(name)
            except Exception as exc:
                self._leave_out(pool, f"could not be installed ({exc})")
            else:
                self.data["versions"].update(peers.pins(name))

    def _leave_out(self, pool: str, reason: str) -> None:
        print(f"{pool}: {reason}", file=sys.stderr)
        for row in self.data["rows"].values():
            if row["samples"].pop(pool, None) is not None:
                row["omitted"][pool] = reason
        for pools in self.data["scenarios"].values():
            pools.pop(pool, None)

    def _guess(self, step: Step) -> float:
        spec = POOLS[step.pool]
        if step.name in SCENARIOS:
            seconds = OVERHEAD if self._args.quick else TYPICAL[step.name]
            slots = SCENARIO_SLOTS if step.name != "memory" else 50
        else:
            row = self._workload(step.name)
            seconds = OVERHEAD + 1.7 * max(self._args.seconds, row.least / 1000)
            slots = row.in_flight
        return seconds + (PER_PROCESS * slots if spec.process_per_slot else 0.0)


def why_not(pool: str, row: Workload, broker: str, peers_everywhere: bool = False) -> str | None:
    """Say why *pool* is not in *row*; None if it is."""
    spec = POOLS[pool]
    if row.in_flight > spec.most:
        return spec.why
    if not spec.runs_tasks and not row.ceiling:
        return "runs no bodies"
    if spec.peer is not None and not (row.peers or peers_everywhere):
        return "another library, which is in few rows"
    if not spec.is_celery and broker != "redis":
        return "its adapter knows Redis only"
    if not spec.is_celery and not row.with_result:
        return "its adapter always stores results"
    return None


def _line(step: Step, sample: dict[str, Any]) -> str:
    if "error" in sample:
        text = "error"
    elif "rate" in sample:
        text = f"{sample['rate']:,.0f} tasks/s in {sample['seconds']:.1f} s"
    else:
        text = "done"
    return f"round {step.round}  {step.name:<18}{step.pool:<17}{text:<26}"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _server_versions(running: Servers) -> dict[str, str]:
    with redis.Redis.from_url(running.results) as client:
        info: Any = client.info("server")
    return {"redis-server": info["redis_version"]}


def _without_password(broker: str) -> str:
    parts = urlsplit(broker)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
