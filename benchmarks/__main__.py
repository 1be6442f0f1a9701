"""``python -m benchmarks``: no-op tasks through each pool, in turns, on one Redis."""

from __future__ import annotations

import argparse
import contextlib
import platform
import sys
from importlib.metadata import version

from .harness import BenchmarkError, run_once, use_redis
from .pools import POOLS
from .redis_server import private_redis
from .report import render


def main() -> int:
    """Run the benchmark; return the exit code."""
    args = _parse_args()
    rates: dict[str, list[float]] = {name: [] for name in args.pools}
    with contextlib.nullcontext(args.redis) if args.redis else private_redis() as url:
        use_redis(url)
        for number in range(1, args.rounds + 1):
            for name in args.pools:
                try:
                    rate = run_once(name, POOLS[name], args.tasks)
                except BenchmarkError as exc:
                    print(f"{name}, round {number}: {exc}", file=sys.stderr)
                    return 1
                rates[name].append(rate)
                print(f"round {number}  {name:<12}{rate:>8.0f} tasks/s", flush=True)
    print(
        f"\n{args.tasks} no-op tasks with stored results; Celery {version('celery')}, "
        f"kombu {version('kombu')}, Python {platform.python_version()}\n"
    )
    print(render(rates))
    return 0


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each pool (%(default)s)")
    parser.add_argument("--tasks", type=int, default=5000, help="tasks per run (%(default)s)")
    parser.add_argument(
        "--pools",
        nargs="+",
        choices=POOLS,
        default=list(POOLS),
        help="pools to run; the last one is what the others are compared with (all)",
    )
    parser.add_argument(
        "--redis", metavar="URL", help="broker and result backend (default: a private server)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
