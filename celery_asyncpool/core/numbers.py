"""One rule for what is a number, wherever somebody writes one down.

Settings may come from the environment, and limits from any producer's message:
a number may be given as its text. A bool is no number, and neither are NaN and
infinity, which no clock and no counter can work with.
"""

from __future__ import annotations

import math

__all__ = ["as_number", "as_whole_number"]


def as_number(value: object) -> int | float | None:
    """Return the number that *value* is, or is the text of; None where it is none."""
    if isinstance(value, str):
        value = _read(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None  # a whole number beyond all floats


def as_whole_number(value: object) -> int | None:
    """As :func:`as_number`, for whole numbers: 4.0 is none."""
    number = as_number(value)
    return number if isinstance(number, int) else None


def _read(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None
