"""Python's garbage collector in a process in which many tasks wait."""

from __future__ import annotations

import gc

__all__ = ["collect_less_often", "restore_thresholds"]


def collect_less_often(threshold: int) -> tuple[int, int, int]:
    """Let new objects be looked through after *threshold* of them; return what was set before.

    Python's own number (700 in 3.11) is small beside what some thousand waiting tasks
    consist of: the collector then looks through all of them again and again, and finds that
    they are in use. A number that is larger already stays, and so does a
    collector that was switched off; so does everything with a *threshold* of 0.
    """
    before = gc.get_threshold()
    if 0 < before[0] < threshold:
        gc.set_threshold(threshold, *before[1:])
    return before


def restore_thresholds(thresholds: tuple[int, int, int]) -> None:
    """Set again what :func:`collect_less_often` has returned."""
    gc.set_threshold(*thresholds)
