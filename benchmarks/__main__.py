"""``python -m benchmarks``: each workload through each pool, in turns, on one Redis.

``python -m benchmarks report`` renders the newest results.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import report, results, servers
from .harness import Servers, throughput
from .pools import DEFAULT_POOLS, POOLS
from .processes import BenchmarkError
from .workloads import WORKLOADS, Workload

#: Rows without ``--only``: what tells most, in a few minutes.
DEFAULT_ROWS = ("noop", "wait-100ms", "wait-1s-10000", "http", "mixed")


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
        "rows": {name: _empty_row(WORKLOADS[name], args) for name in args.only},
    }
    bodies = {WORKLOADS[name].body for name in args.only}
    with servers.started(args.broker, bodies) as running:
        for number in range(1, args.rounds + 1):
            _run_round(number, args, session["rows"], running)
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


def _sample(pool: str, row: str, tasks: int, running: Servers) -> dict[str, Any]:
    try:
        return throughput(POOLS[pool], WORKLOADS[row], running, tasks)
    except BenchmarkError as exc:
        print(f"{row}, {pool}: {exc}", file=sys.stderr)
        return {"error": str(exc)}


def _empty_row(row: Workload, args: argparse.Namespace) -> dict[str, Any]:
    """Return *row* without samples: which pools take part, and why the others do not."""
    omitted = {pool: reason for pool in args.pools if (reason := _why_not(pool, row)) is not None}
    return {
        "title": row.title,
        "in_flight": row.in_flight,
        "tasks": max(row.tasks // 20, 50) if args.quick else row.tasks,
        "omitted": omitted,
        "samples": {pool: [] for pool in args.pools if pool not in omitted},
    }


def _why_not(pool: str, row: Workload) -> str | None:
    spec = POOLS[pool]
    if row.in_flight > spec.most:
        return spec.why
    if not spec.runs_tasks and not row.ceiling:
        return "runs no bodies"
    return None


def _has_errors(session: dict[str, Any]) -> bool:
    return any(
        "error" in sample
        for row in session["rows"].values()
        for samples in row["samples"].values()
        for sample in samples
    )


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("run", "report"), default="run")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the tasks, one round")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, metavar="ROW", help="these rows")
    parser.add_argument("--all", action="store_true", help="all rows")
    parser.add_argument(
        "--pools", nargs="+", choices=POOLS, metavar="POOL", default=list(DEFAULT_POOLS)
    )
    parser.add_argument("--rounds", type=int, help="runs of each pool (5)")
    parser.add_argument("--broker", choices=("redis", "rabbitmq"), default="redis")
    parser.add_argument("--output", type=Path, help="where to write the results")
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.only = args.only or list(WORKLOADS if args.all else DEFAULT_ROWS)
    return args


if __name__ == "__main__":
    sys.exit(main())
