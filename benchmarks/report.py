"""The figures as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

__all__ = ["render"]


def render(rates: Mapping[str, Sequence[float]]) -> str:
    """Return a table of the tasks per second of each pool, by its name.

    The last column compares each pool with the last one.
    """
    medians = {name: median(values) for name, values in rates.items()}
    base = list(medians)[-1]
    lines = [f"{'pool':<12}{'median/s':>10}{'min':>8}{'max':>8}   ratio to {base}"]
    lines += [
        f"{name:<12}{medians[name]:>10.0f}{min(values):>8.0f}{max(values):>8.0f}"
        f"   {medians[name] / medians[base]:.2f}"
        for name, values in rates.items()
    ]
    return "\n".join(lines)
