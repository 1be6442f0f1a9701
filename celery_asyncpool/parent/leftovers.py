"""Subprocesses that a dead worker process has left behind.

They are known by their process group (the worker process leads its own) and,
where they left it as Chromium does, by the variable that the worker process
had put into its environment.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

from celery.utils.log import get_logger

from ..handover import PROCESS_VARIABLE

__all__ = ["kill_leftovers"]

logger = get_logger(__name__)

PROC = Path("/proc")


def kill_leftovers(pid: int) -> list[int]:
    """Kill what the dead worker process *pid* has left; return the pids.

    Call it before the pid can be used again: right after the exit. Looks until
    nothing is found, since a subprocess may start another one meanwhile.
    """
    killed: list[int] = []
    while found := [leftover for leftover in _find(pid) if leftover not in killed]:
        for leftover in found:
            _kill(leftover)
        killed += found
    if not PROC.is_dir():
        _kill_group(pid)  # macOS: what stayed in the group
    if killed:
        logger.warning("killed subprocesses that worker process %s left: %s", pid, killed)
    return killed


def _find(pid: int) -> Iterator[int]:
    marker = f"{PROCESS_VARIABLE}={pid}".encode()
    for entry in PROC.glob("[0-9]*"):
        candidate = int(entry.name)
        if candidate == pid:
            continue
        try:
            if os.getpgid(candidate) == pid or _has_marker(entry, marker):
                yield candidate
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            continue  # gone meanwhile, or somebody else's


def _has_marker(entry: Path, marker: bytes) -> bool:
    return marker in (entry / "environ").read_bytes().split(b"\0")


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it went by itself


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # nobody is left in it
