"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .pools import ALL_POOLS, DEFAULT_POOLS, POOLS
from .workloads import TARGET_ROWS, WORKLOADS

__all__ = ["SCENARIOS", "parse"]

#: Measures that are more than the time of a full queue.
SCENARIOS = ("latency", "memory", "rest", "recovery")
#: Rounds, unless --rounds says something else. Scenarios take long, and vary little.
ROUNDS, SCENARIO_ROUNDS = 5, 3
#: Seconds that the timed part of a run takes, about.
SECONDS, QUICK_SECONDS = 4.0, 0.2


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options, with defaults filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Run each workload through each pool, in turns, on one Redis.",
        epilog="'report' renders results, by default the newest, into benchmarks/README.md.",
    )
    parser.add_argument("command", nargs="?", choices=("run", "report"), default="run")
    parser.add_argument("results", nargs="?", type=Path, help="what 'report' renders")
    parser.add_argument("--quick", action="store_true", help="few tasks, one round: does it work?")
    parser.add_argument("--targets", action="store_true", help="what the targets need, peers too")
    parser.add_argument("--all", action="store_true", help="all rows, measures, pools and peers")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*WORKLOADS, *SCENARIOS),
        metavar="ROW",
        help=f"these of {', '.join((*WORKLOADS, *SCENARIOS))}",
    )
    parser.add_argument(
        "--pools",
        nargs="+",
        choices=POOLS,
        metavar="POOL",
        help=f"these of {', '.join(POOLS)}",
    )
    parser.add_argument("--rounds", type=int, help=f"runs of each pool ({ROUNDS})")
    parser.add_argument(
        "--scenario-rounds",
        type=int,
        help=f"runs of each pool in {', '.join(SCENARIOS)} ({SCENARIO_ROUNDS})",
    )
    parser.add_argument("--seconds", type=float, help=f"of each timed part ({SECONDS:.0f})")
    parser.add_argument(
        "--minutes", type=float, help="begin no round that would end later, but the first"
    )
    parser.add_argument(
        "--peers-everywhere",
        action="store_true",
        help="other libraries take part in all rows and measures",
    )
    parser.add_argument("--broker", default="redis", help="redis, rabbitmq or a URL (redis)")
    parser.add_argument("--output", type=Path, help="where to write the results")
    args = parser.parse_args(argv)
    if args.broker not in ("redis", "rabbitmq") and "://" not in args.broker:
        parser.error("--broker: redis, rabbitmq or a URL")
    return _with_defaults(args)


def _with_defaults(args: argparse.Namespace) -> argparse.Namespace:
    args.rounds = args.rounds or (1 if args.quick else ROUNDS)
    args.scenario_rounds = args.scenario_rounds or min(args.rounds, SCENARIO_ROUNDS)
    args.seconds = args.seconds or (QUICK_SECONDS if args.quick else SECONDS)
    if args.all:
        rows, pools = (*WORKLOADS, *SCENARIOS), ALL_POOLS
    elif args.targets:
        rows, pools = (*TARGET_ROWS, *SCENARIOS), ALL_POOLS
    else:
        rows, pools = TARGET_ROWS, DEFAULT_POOLS
    args.only = args.only or list(rows)
    args.pools = args.pools or list(pools)
    return args
