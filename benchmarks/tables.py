"""Figures as text: tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .stats import summarise

__all__ = [
    "cell",
    "latency_table",
    "losses",
    "markdown",
    "medians",
    "memory_table",
    "recovery_table",
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
    return {
        pool: summarise([sample[key] for sample in runs]).median
        for pool, runs in samples.items()
        if runs and not any("error" in sample for sample in runs)
    }


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
        if any("error" in run for run in runs):
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
    """Return idle CPU in percent, and MiB by tasks in flight, a line for each pool."""
    good = {p: runs for p, runs in samples.items() if not any("error" in run for run in runs)}
    points = sorted({point for runs in good.values() for point in runs[0]["memory"]}, key=int)
    lines = []
    for pool, runs in samples.items():
        if pool not in good:
            lines.append([pool, cell(runs, "idle_cpu"), *[""] * len(points)])
            continue
        memory = [run["memory"] for run in runs]
        cells = [cell(memory, n, 1 / 2**20) if n in memory[0] else "" for n in points]
        lines.append([pool, cell(runs, "idle_cpu", 100), *cells])
    return markdown(["pool", "idle CPU %", *(f"{point} tasks" for point in points)], lines)


def recovery_table(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return seconds until a new process starts a task, and how many tasks were lost."""
    lines = [[pool, cell(runs, "seconds"), cell(runs, "lost")] for pool, runs in samples.items()]
    return markdown(["pool", "seconds", "tasks lost"], lines)


def losses(rows: Mapping[str, Mapping[str, Any]], ours: str = "asyncpool") -> list[str]:
    """Say where another pool has the better median; ``ceiling`` is none."""
    lines = []
    for name, row in rows.items():
        rates = medians(row["samples"], "rate")
        for pool, rate in rates.items():
            if ours in rates and pool not in (ours, "ceiling") and rate > rates[ours]:
                lines.append(f"`{name}`: {pool} is {rate / rates[ours]:.2f} times as fast")
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
