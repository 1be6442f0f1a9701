"""How much memory a process uses."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["can_tell_memory", "resident_memory"]


def can_tell_memory() -> bool:
    """Whether this system tells one process how much memory another uses (Linux does)."""
    return Path("/proc/self/statm").exists()


def resident_memory(pid: int) -> int | None:
    """Return the resident memory of process *pid* in KiB, pages shared with its parent included.

    None for a process that is gone, and where the system does not tell.
    """
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024
