"""Medians, percentiles and spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

__all__ = ["Summary", "percentile", "summarise"]


class Summary(NamedTuple):
    """The middle and the ends of some samples."""

    median: float
    least: float
    most: float


def summarise(values: Sequence[float]) -> Summary:
    """Return the median and the spread of *values*, of which there is at least one."""
    return Summary(median(values), min(values), max(values))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of *values* that is not below *share* (0 to 1) of them."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]
