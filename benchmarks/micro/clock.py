"""How long one turn takes."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from typing import Any

from ..stats import summarise

__all__ = ["report"]


def report(what: str, function: Callable[[], Any], turns: int) -> None:
    """Print microseconds for each of the *turns* that one call of *function* makes."""
    timer = timeit.Timer(function)
    calls, _ = timer.autorange()
    seconds = timer.repeat(5, calls)
    middle, least, most = summarise([s / calls / turns * 1e6 for s in seconds])
    print(f"{what}: {middle:.2f} us ({least:.2f} to {most:.2f})")
