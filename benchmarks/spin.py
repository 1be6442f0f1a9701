"""Work for a CPU, the same amount each time."""

from __future__ import annotations

__all__ = ["spin"]


def spin(turns: int) -> int:
    """Compute, holding Python's lock."""
    total = 0
    for number in range(turns):
        total += number * number
    return total
