"""What a tree of processes uses, from ``/proc``; None where there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cpu_seconds", "parse_pss", "parse_stat", "pss_bytes", "tree"]

PROC = Path("/proc")
TICK = os.sysconf("SC_CLK_TCK")


def parse_stat(text: str) -> tuple[int, int]:
    """Return parent pid and CPU ticks, its reaped children's included, of a ``stat`` file."""
    fields = text.rpartition(")")[2].split()
    return int(fields[1]), sum(int(field) for field in fields[11:15])


def parse_pss(text: str) -> int:
    """Return the bytes that a ``smaps_rollup`` file says."""
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no line with Pss")


def tree(root: int) -> list[int]:
    """Pids of *root* and all that descend from it."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in _stats():
        children.setdefault(parent, []).append(pid)
    pids = [root]
    for pid in pids:
        pids += children.get(pid, ())
    return pids


def cpu_seconds(root: int) -> float | None:
    """CPU seconds that the tree of *root* has used, ended processes included."""
    if not PROC.is_dir():
        return None
    family = set(tree(root))
    return sum(ticks for pid, (_, ticks) in _stats() if pid in family) / TICK


def pss_bytes(root: int) -> int | None:
    """Memory of the tree of *root*; what n processes share counts once in all."""
    if not PROC.is_dir():
        return None
    total = 0
    for pid in tree(root):
        try:
            total += parse_pss((PROC / str(pid) / "smaps_rollup").read_text())
        except (ProcessLookupError, FileNotFoundError):
            continue  # it has just ended
    return total


def _stats() -> Iterator[tuple[int, tuple[int, int]]]:
    for entry in PROC.glob("[0-9]*/stat"):
        try:
            yield int(entry.parent.name), parse_stat(entry.read_text())
        except (ProcessLookupError, FileNotFoundError):
            continue
