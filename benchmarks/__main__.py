"""``python -m benchmarks``: each workload through each pool, in turns, on one Redis.

``python -m benchmarks report`` renders the newest results.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import report, results, scenarios, servers
from .harness import Servers, throughput
from .pools import DEFAULT_POOLS, POOLS
from .processes import BenchmarkError
from .workloads import WORKLOADS, Workload

#: Rows without ``--only``: what tells most, in a few minutes.
DEFAULT_ROWS = ("noop", "wait-100ms", "wait-1s-10000", "http", "mixed")

#: Measures of a pool with no-op or waiting tasks, and how many slots it has there.
SCENARIOS = ("latency", "memory", "recovery")
SCENARIO_SLOTS = 20
MEMORY_POINTS = (10, 50, 1000, 10_000)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; return the exit code."""
    args = _parse_args(argv)
    if args.command == "report":
        print(report.write())
        return 0
    session = {
        **results.describe(),
        "broker": args.broker,
        "rounds": args.rounds,
        "is_quick": args.quick,
        "rows": {
            name: _empty_row(WORKLOADS[name], args) for name in args.only if name in WORKLOADS
        },
        "scenarios": {
            name: {pool: [] for pool in args.pools if _takes_part(pool, name)}
            for name in args.only
            if name in SCENARIOS
        },
    }
    bodies = {WORKLOADS[name].body for name in session["rows"]}
    with servers.started(args.broker, bodies) as running:
        for number in range(1, args.rounds + 1):
            _run_round(number, args, session["rows"], running)
            _run_scenarios(number, args, session["scenarios"], running)
    path = results.save(session, args.output)
    print(f"\n{report.summary(session)}\n\nwritten to {path}")
    return 1 if _has_errors(session) else 0


def _run_round(
    number: int, args: argparse.Namespace, rows: dict[str, Any], running: Servers
) -> None:
    """Run each row once with each of its pools, one after the other."""
    for name, row in rows.items():
        for pool in row["samples"]:
            start = time.monotonic()
            sample = _sample(pool, name, row["tasks"], running)
            row["samples"][pool].append(sample)
            text = f"{sample['rate']:>8.0f} tasks/s" if "rate" in sample else "   error"
            seconds = time.monotonic() - start
            print(
                f"round {number}/{args.rounds}  {name:<18}{pool:<17}{text}  ({seconds:.0f} s)",
                flush=True,
            )


def _run_scenarios(
    number: int, args: argparse.Namespace, scenarios: dict[str, Any], running: Servers
) -> None:
    for name, pools in scenarios.items():
        for pool, samples in pools.items():
            start = time.monotonic()
            samples.append(_scenario_sample(name, pool, args.quick, running))
            seconds = time.monotonic() - start
            text = "error" if "error" in samples[-1] else "done"
            print(
                f"round {number}/{args.rounds}  {name:<18}{pool:<17}{text}  ({seconds:.0f} s)",
                flush=True,
            )


def _scenario_sample(name: str, pool: str, quick: bool, running: Servers) -> dict[str, Any]:
    spec = POOLS[pool]
    slots = min(SCENARIO_SLOTS, spec.most)
    try:
        if name == "latency":
            return scenarios.latency(spec, running, slots, 1.0 if quick else 5.0)
        if name == "memory":
            points = MEMORY_POINTS[:2] if quick else MEMORY_POINTS
            return scenarios.memory(spec, running, points, 1.0 if quick else 5.0)
        return scenarios.recovery(spec, running, slots)
    except BenchmarkError as exc:
        print(f"{name}, {pool}: {exc}", file=sys.stderr)
        return {"error": str(exc)}


def _takes_part(pool: str, scenario: str) -> bool:
    spec = POOLS[pool]
    enough = scenario != "memory" or spec.most >= MEMORY_POINTS[0]
    return spec.runs_tasks and enough and (scenario != "recovery" or spec.has_processes)


def _sample(pool: str, row: str, tasks: int, running: Servers) -> dict[str, Any]:
    try:
        return throughput(POOLS[pool], WORKLOADS[row], running, tasks)
    except BenchmarkError as exc:
        print(f"{row}, {pool}: {exc}", file=sys.stderr)
        return {"error": str(exc)}


def _empty_row(row: Workload, args: argparse.Namespace) -> dict[str, Any]:
    """Return *row* without samples: which pools take part, and why the others do not."""
    omitted = {
        pool: reason
        for pool in args.pools
        if (reason := _why_not(pool, row, args.broker)) is not None
    }
    return {
        "title": row.title,
        "in_flight": row.in_flight,
        "tasks": max(row.tasks // 20, 50) if args.quick else row.tasks,
        "omitted": omitted,
        "samples": {pool: [] for pool in args.pools if pool not in omitted},
    }


def _why_not(pool: str, row: Workload, broker: str) -> str | None:
    spec = POOLS[pool]
    if row.in_flight > spec.most:
        return spec.why
    if not spec.runs_tasks and not row.ceiling:
        return "runs no bodies"
    if spec.peer in ("taskiq", "arq", "dramatiq") and broker != "redis":
        return "its adapter knows Redis only"
    if spec.peer in ("taskiq", "arq", "dramatiq") and not row.with_result:
        return "its adapter always stores results"
    return None


def _has_errors(session: dict[str, Any]) -> bool:
    return any(
        "error" in sample
        for pools in (
            *(row["samples"] for row in session["rows"].values()),
            *session["scenarios"].values(),
        )
        for samples in pools.values()
        for sample in samples
    )


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("run", "report"), default="run")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the tasks, one round")
    parser.add_argument(
        "--only", nargs="+", choices=(*WORKLOADS, *SCENARIOS), metavar="ROW", help="these rows"
    )
    parser.add_argument("--all", action="store_true", help="all rows and measures")
    parser.add_argument(
        "--pools", nargs="+", choices=POOLS, metavar="POOL", default=list(DEFAULT_POOLS)
    )
    parser.add_argument("--rounds", type=int, help="runs of each pool (5)")
    parser.add_argument("--broker", choices=("redis", "rabbitmq"), default="redis")
    parser.add_argument("--output", type=Path, help="where to write the results")
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.only = args.only or list((*WORKLOADS, *SCENARIOS) if args.all else DEFAULT_ROWS)
    return args


if __name__ == "__main__":
    # A benchmark that is ended takes its workers and servers with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
