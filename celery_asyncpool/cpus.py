"""How many CPUs this process may use: affinity and cgroup quota included."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["usable_cpus"]

CGROUP = Path("/sys/fs/cgroup")


def usable_cpus(cgroup: Path = CGROUP) -> int:
    """Return the CPUs that this process may keep busy, at least 1.

    The smaller of its affinity mask and its cgroup's quota (versions 2 and 1),
    rounded up: a quota of 1.5 CPUs is worth two processes.
    """
    count = _affinity()
    quota = _quota(cgroup)
    if quota is not None:
        count = min(count, math.ceil(quota))
    return max(count, 1)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity masks


def _quota(cgroup: Path) -> float | None:
    """CPUs allowed by the cgroup at *cgroup*; None where there is no limit."""
    fields = _read(cgroup / "cpu.max").split()
    if not fields:
        fields = [
            _read(cgroup / "cpu/cpu.cfs_quota_us").strip(),
            _read(cgroup / "cpu/cpu.cfs_period_us").strip(),
        ]
    try:
        quota, period = int(fields[0]), int(fields[1])
    except (ValueError, IndexError):
        return None  # "max", or no such cgroup
    return quota / period if quota > 0 and period > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
