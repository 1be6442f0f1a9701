"""Subprocesses that a worker process leaves behind when it goes.

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

from .handover import PROCESS_VARIABLE

__all__ = ["find_leftovers", "kill_leftovers", "name_of"]

logger = get_logger(__name__)

PROC = Path("/proc")


def find_leftovers(pid: int) -> list[int]:
    """Return the pids of what the worker process *pid* has started and left.

    Itself is not among them. Linux only: elsewhere nothing is found. Raises
    ``OSError`` when the system has no descriptor left to look with.
    """
    return list(_find(pid))


def kill_leftovers(pid: int) -> list[int]:
    """Kill what the worker process *pid* has left; return the pids.

    Call it before the pid can be used again: right after the exit. Looks until
    nothing is found, since a subprocess may start another one meanwhile.
    Raises ``OSError`` when the system has no descriptor left to look with.
    """
    killed: list[int] = []
    while found := [leftover for leftover in _find(pid) if leftover not in killed]:
        for leftover in found:
            _kill(leftover)
        killed += found
    if not PROC.is_dir() and pid != os.getpid():
        _kill_group(pid)  # macOS: what stayed in the group
    if killed:
        logger.warning("killed subprocesses that worker process %s left: %s", pid, killed)
    return killed


def name_of(pid: int) -> str:
    """Return the pid with the program's name, for the log."""
    try:
        return f"{pid} ({(PROC / str(pid) / 'comm').read_text().strip()})"
    except OSError:
        return str(pid)


def _find(pid: int) -> Iterator[int]:
    marker = f"{PROCESS_VARIABLE}={pid}".encode()
    for name in os.listdir(PROC) if PROC.is_dir() else ():
        if not name.isdecimal() or int(name) == pid:
            continue
        candidate, entry = int(name), PROC / name
        try:
            is_left = os.getpgid(candidate) == pid or _has_marker(entry, marker)
            if is_left and not _is_zombie(entry):
                yield candidate
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            continue  # gone meanwhile, or somebody else's


def _has_marker(entry: Path, marker: bytes) -> bool:
    return marker in (entry / "environ").read_bytes().split(b"\0")


def _is_zombie(entry: Path) -> bool:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"


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
