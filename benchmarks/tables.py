"""Figures as text: tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .stats import summarise
from .targets import TARGETS, figure, per_task

__all__ = [
    "cell",
    "latency_table",
    "losses",
    "markdown",
    "medians",
    "memory_table",
    "recovery_table",
    "rest_table",
    "targets_table",
    "throughput_table",
]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(samples: Sequence[Mapping[str, Any]], key: str, scale: float = 1.0) -> str:
    """Return median and spread of *key*, or what there is instead of it.

    One error is enough: a pool that fails now and then has no figure.
    """
    if not samples:
        return ""
    errors = sum("error" in sample for sample in samples)
    if errors:
        return f"error ({errors} of {len(samples)})"
    values = [sample[key] for sample in samples]
    if None in values:
        return "?"
    middle, least, most = (_number(value * scale) for value in summarise(values))
    return f"{middle} ({least} to {most})"


def medians(samples: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> dict[str, float]:
    """Return the median of each pool that has had no error."""
    figures = {pool: figure(runs, key) for pool, runs in samples.items()}
    return {pool: value for pool, value in figures.items() if value is not None}


def throughput_table(
    rows: Mapping[str, Mapping[str, Any]], pools: Sequence[str], key: str, scale: float = 1.0
) -> str:
    """Return the table of *key*: a line for each row, a column for each pool."""
    lines = [
        [
            f"{row['title']} (`{name}`)",
            str(row["in_flight"]),
            *(cell(row["samples"].get(pool, ()), key, scale) for pool in pools),
        ]
        for name, row in rows.items()
    ]
    return markdown(["tasks", "in flight", *pools], lines)


def latency_table(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return percentiles in milliseconds, a line for each pool and load."""
    lines = []
    for pool, runs in samples.items():
        if not runs or any("error" in run for run in runs):
            lines.append([pool, "", cell(runs, "capacity"), *[""] * 6])
            continue
        for share in runs[0]["loads"]:
            loads = [run["loads"][share] for run in runs]
            figures = [
                cell([load[what] for load in loads], name, 1000)
                for what in ("start", "result")
                for name in ("p50", "p95", "p99")
            ]
            lines.append([pool, f"{float(share):.0%}", cell(loads, "rate"), *figures])
    ends = [f"{what} {name}" for what in ("start", "result") for name in ("p50", "p95", "p99")]
    return markdown(["pool", "load", "tasks/s", *ends], lines)


def memory_table(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return MiB by tasks in flight, and kB for each, a line for each pool."""
    good = {p: r for p, r in samples.items() if r and not any("error" in run for run in r)}
    points = sorted({point for runs in good.values() for point in runs[0]["memory"]}, key=int)
    lines = []
    for pool, runs in samples.items():
        if pool not in good:
            lines.append([pool, *[""] * len(points), cell(runs, "memory")])
            continue
        memory = [run["memory"] for run in runs]
        cells = [cell(memory, n, 1 / 2**20) if n in memory[0] else "" for n in points]
        each = [{"each": per_task(one)} for one in memory]
        lines.append([pool, *cells, cell(each, "each", 1e-3)])
    return markdown(["pool", *(f"{point} tasks" for point in points), "kB for each task"], lines)


def rest_table(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return start, memory and CPU of workers without work."""
    lines = [
        [
            pool,
            cell(runs, "startup"),
            cell(runs, "memory", 1 / 2**20),
            cell(runs, "idle_cpu", 100),
        ]
        for pool, runs in samples.items()
    ]
    return markdown(["pool", "seconds to ready", "MiB", "CPU %"], lines)


def recovery_table(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return seconds until a new process starts a task, and how many tasks were lost."""
    lines = [[pool, cell(runs, "seconds"), cell(runs, "lost")] for pool, runs in samples.items()]
    return markdown(["pool", "seconds", "tasks lost"], lines)


def targets_table(session: Mapping[str, Any]) -> str:
    """Return what was aimed at, what was measured, and whether that is enough."""
    lines = []
    for target in TARGETS:
        value = target.measure(session)
        sign = "at least" if target.is_least else "at most"
        lines.append(
            [
                target.what,
                f"{sign} {target.limit:g}{target.unit}",
                "not measured" if value is None else f"{value:.2f}{target.unit}",
                "" if value is None else "met" if target.is_met(value) else "**not met**",
            ]
        )
    return markdown(["target", "wanted", "measured", ""], lines)


#: Pools that are limits, not a choice.
NO_CHOICE = ("ceiling", "ceiling-batches")
#: As keys of saved results.
MEMORY_POINTS = ("10", "50", "1000", "10000")
LOADS = ("0.5", "0.9")


def losses(session: Mapping[str, Any], ours: str = "asyncpool") -> list[str]:
    """Say where another pool has the better median: rates, CPU time, and the scenarios."""
    lines = []
    for name, row in session["rows"].items():
        lines += _beaten(f"`{name}`, tasks/s", medians(row["samples"], "rate"), ours, -1)
        lines += _beaten(
            f"`{name}`, CPU time of a task", medians(row["samples"], "cpu_per_1000"), ours
        )
    for what, figures in _scenario_figures(session["scenarios"]):
        lines += _beaten(what, figures, ours)
    return lines


def _scenario_figures(
    scenarios: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield what is the better the smaller it is."""
    rest, memory = scenarios.get("rest", {}), scenarios.get("memory", {})
    yield "start-up", medians(rest, "startup")
    yield "memory at rest", medians(rest, "memory")
    yield "CPU at rest", medians(rest, "idle_cpu")
    for count in MEMORY_POINTS:
        at = {pool: [run.get("memory", run) for run in runs] for pool, runs in memory.items()}
        yield f"memory with {count} tasks", medians(at, count)
    for share in LOADS:
        loads = {
            pool: [run["loads"][share]["start"] if "loads" in run else run for run in runs]
            for pool, runs in scenarios.get("latency", {}).items()
        }
        yield f"p99 to start at {float(share):.0%} load", medians(loads, "p99")
    yield "recovery", medians(scenarios.get("recovery", {}), "seconds")


def _beaten(what: str, figures: Mapping[str, float], ours: str, sign: int = 1) -> list[str]:
    """Return a line with the pools whose figure is smaller; with -1 as *sign*, greater."""
    mine = figures.get(ours)
    if not mine:
        return []
    better = [
        f"{pool} {value / mine:.2f}"
        for pool, value in figures.items()
        if pool not in (ours, *NO_CHOICE) and sign * value < sign * mine
    ]
    return [f"{what}, times {ours}'s: {', '.join(better)}"] if better else []


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
