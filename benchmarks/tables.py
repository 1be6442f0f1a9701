"""Figures as text: tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .stats import summarise

__all__ = ["cell", "losses", "markdown", "medians", "throughput_table"]


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
