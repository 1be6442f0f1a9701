"""``python -m benchmarks.sizing``: what slots, processes, prefetch and threads do to asyncpool.

One option changes at a time. The figures are those of the README's sizing guide.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import results, servers
from .harness import Servers, throughput
from .options import QUICK_SECONDS, SECONDS
from .pools import POOLS, with_settings
from .processes import BenchmarkError
from .tables import cell, markdown
from .workloads import WORKLOADS, Workload

__all__ = ["SWEEPS", "Sweep", "newest", "report", "table"]

FOLDER = results.FOLDER / "sizing"
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Sweep:
    """One option, the values that it takes, and the tasks that run meanwhile.

    Attributes:
        title: in words.
        option: of ``celery worker``, or a setting (``asyncpool_threads``).
        values: of the option.
        row: what runs.
        in_flight: slots, where these are not what changes.
    """

    title: str
    option: str
    values: tuple[int, ...]
    row: Workload
    in_flight: int

    def throughput(self, value: int, running: Servers, seconds: float) -> dict[str, Any]:
        """Return one sample with the option's *value*."""
        slots = value if self.option == "-c" else self.in_flight
        row, spec = dataclasses.replace(self.row, in_flight=slots), POOLS["asyncpool"]
        if self.option.startswith("--"):
            spec = dataclasses.replace(spec, options=(*spec.options, self.option, str(value)))
        elif self.option != "-c":
            spec = dataclasses.replace(spec, environment=with_settings({self.option: value}))
        return throughput(spec, row, running, seconds)


SWEEPS = {
    "slots-http": Sweep(
        "HTTP requests of 50 ms, two processes", "-c", (10, 50, 100, 250, 500, 1000),
        dataclasses.replace(WORKLOADS["http"], args=("$URL", 1000)), 0,
    ),
    "slots-wait": Sweep(
        "await 1 s, two processes", "-c", (100, 500, 1000, 2500, 5000),
        dataclasses.replace(WORKLOADS["wait-1s-10000"], least=200), 0,
    ),
    "processes-mixed": Sweep(
        "3 ms CPU + 30 ms await, 100 slots", "--processes", (1, 2, 4), WORKLOADS["mixed"], 100
    ),
    "processes-http": Sweep(
        "HTTP requests of 50 ms, 500 slots", "--processes", (1, 2, 4), WORKLOADS["http"], 500
    ),
    "prefetch": Sweep(
        "await 100 ms, 100 slots", "--prefetch-multiplier", (1, 2, 4, 16),
        WORKLOADS["wait-100ms"], 100,
    ),
    "threads": Sweep(
        "`def` tasks that sleep 100 ms, 200 slots", "asyncpool_threads", (8, 32, 100),
        dataclasses.replace(WORKLOADS["wait-100ms"], form="sync"), 200,
    ),
}  # fmt: skip


def table(sweep: dict[str, Any]) -> str:
    """Render the samples of one sweep."""
    rows = [
        [
            str(value),
            cell(samples, "rate"),
            cell(samples, "cpu_per_1000"),
            cell(samples, "memory", 1 / 2**20),
        ]
        for value, samples in sweep["samples"].items()
    ]
    head = [f"`{sweep['option']}`", "tasks/s", "CPU s per 1,000 tasks", "MiB at rest (PSS)"]
    return f"{sweep['title']}:\n\n{markdown(head, rows)}"


def measure(names: Iterable[str], rounds: int, seconds: float) -> dict[str, Any]:
    """Run the sweeps, all values in turns; return what is saved."""
    data = {
        name: {
            "title": SWEEPS[name].title,
            "option": SWEEPS[name].option,
            "samples": {str(value): [] for value in SWEEPS[name].values},
        }
        for name in names
    }
    with servers.started("redis", {SWEEPS[name].row.body for name in data}) as running:
        for number in range(1, rounds + 1):
            for name, sweep in data.items():
                for value in SWEEPS[name].values:
                    sample = _sample(SWEEPS[name], value, running, seconds)
                    sweep["samples"][str(value)].append(sample)
                    figure = f"{sample['rate']:,.0f} tasks/s" if "rate" in sample else "error"
                    print(f"round {number}  {name} {SWEEPS[name].option}={value}: {figure}")
    return data


def _sample(sweep: Sweep, value: int, running: Servers, seconds: float) -> dict[str, Any]:
    try:
        return sweep.throughput(value, running, seconds)
    except BenchmarkError as exc:
        print(exc)
        return {"error": str(exc)}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables and save the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizing", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few tasks, one round: does it work?")
    parser.add_argument("--only", nargs="+", choices=SWEEPS, metavar="SWEEP", default=[*SWEEPS])
    parser.add_argument("--rounds", type=int, help=f"runs of each value ({ROUNDS})")
    args = parser.parse_args(argv)
    rounds = args.rounds or (1 if args.quick else ROUNDS)
    data = {
        **results.describe(),
        "rounds": rounds,
        "is_quick": args.quick,
        "sweeps": measure(args.only, rounds, QUICK_SECONDS if args.quick else SECONDS / 2),
    }
    path = FOLDER / ("quick.json" if args.quick else f"{data['date'][:10]}.json")
    results.save(data, path)
    print("\n\n".join(map(table, data["sweeps"].values())), f"\nwritten to {path}")


def report(data: dict[str, Any] | None) -> str:
    """Render what was saved."""
    if data is None:
        return "Not measured yet: run `python -m benchmarks.sizing`."
    head = f"{data['date'][:10]}, {results.name_commit(data)}, {data['rounds']} rounds."
    return "\n\n".join((head, *map(table, data["sweeps"].values())))


def newest(folder: Path = FOLDER) -> dict[str, Any] | None:
    """Return the newest figures that are not of a quick session, None where there are none."""
    paths = sorted(folder.glob("2*.json"))
    return results.load(paths[-1]) if paths else None


if __name__ == "__main__":
    main()
