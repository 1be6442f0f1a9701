"""What the worker's main process adopts, and has to reap.

A subprocess whose parent has gone becomes the child of the next process above
that asks for it (Linux: a "subreaper"), else of process 1. The worker's main
process asks for it, so that nothing that its worker processes leave escapes it,
and is process 1 itself in many containers. Somebody who adopts has to reap, or
zombies fill the process table.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from celery.utils.log import get_logger

__all__ = ["Adopted", "become_subreaper", "is_subreaper", "stop_being_subreaper"]

logger = get_logger(__name__)

#: From ``<linux/prctl.h>``.
PR_SET_CHILD_SUBREAPER = 36
PR_GET_CHILD_SUBREAPER = 37

#: Seconds after which nobody else will ask for the exit code of a child of which it
#: is not known where it comes from.
PATIENCE = 10.0


def become_subreaper() -> bool:
    """Adopt what descendants leave from now on; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    if _prctl(PR_SET_CHILD_SUBREAPER, 1):
        return True
    logger.warning(
        "cannot become a child subreaper (%s): subprocesses that a worker process leaves "
        "are reaped by process 1",
        os.strerror(ctypes.get_errno()),
    )
    return False


def is_subreaper() -> bool:
    """Whether this process adopts what descendants leave."""
    value = ctypes.c_int(0)
    if not sys.platform.startswith("linux"):
        return False
    return _prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(value)) and value.value != 0


def stop_being_subreaper() -> None:
    """Leave what descendants leave from now on to the next process above."""
    _prctl(PR_SET_CHILD_SUBREAPER, 0)


def _prctl(option: int, argument: Any) -> bool:
    """Call Linux's ``prctl``; False when it has failed."""
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(option, argument, 0, 0, 0) == 0)


class Adopted:
    """Reaps dead children that worker processes have left.

    A program may have started subprocesses of its own in the main process, whose
    exit codes are not ours to take. These are in its process group, unless it wanted
    otherwise; a worker process leads a group of its own, so nothing that it has
    started is there. So what was known to be left by a worker process is reaped at
    once, what is in the group of the main process never, and the others after
    :data:`PATIENCE`.

    Arguments:
        children: gives the pids of this process's children.
        is_zombie: whether one of them has died.
        is_in_our_group: whether one is in the process group of the main process.
        reaps_strangers: whether anything else is reaped at all.
    """

    def __init__(
        self,
        children: Callable[[], list[int]] | None = None,
        is_zombie: Callable[[int], bool] | None = None,
        reaps_strangers: bool = True,
        is_in_our_group: Callable[[int], bool] | None = None,
    ) -> None:
        self._children = children or _children
        self._is_zombie = is_zombie or _is_zombie
        self._reaps_strangers = reaps_strangers
        self._is_in_our_group = is_in_our_group or _is_in_our_group
        #: Known to have been started by a worker process.
        self._known: set[int] = set()
        #: Dead ones of unknown origin, and since when.
        self._dead: dict[int, float] = {}

    def expect(self, pids: Iterable[int]) -> None:
        """*pids* were left by a worker process: they are reaped when they die."""
        self._known.update(pids)

    def reap(self, now: float, own: Iterable[int]) -> list[int]:
        """Reap what can be, at *now* (monotonic seconds); return the pids.

        *own*: the pids of the pool's processes, which are not touched.
        """
        children = set(self._children()) - set(own)
        self._known &= children
        mine = children if self._reaps_strangers else self._known
        dead = {pid for pid in mine if self._is_zombie(pid)}
        self._dead = {pid: self._dead.get(pid, now) for pid in dead}
        return [pid for pid in dead if self._is_ours(pid, now) and _reap(pid)]

    def _is_ours(self, pid: int, now: float) -> bool:
        if pid in self._known:
            return True
        return now - self._dead[pid] >= PATIENCE and not self._is_in_our_group(pid)


def _children() -> list[int]:
    """The pids of this process's children; none where the kernel does not tell."""
    pids: list[int] = []
    try:
        for thread in os.listdir("/proc/self/task"):
            pids += map(int, Path(f"/proc/self/task/{thread}/children").read_text().split())
    except OSError:
        return []  # a thread has just ended, or no descriptor is left: the next look tells
    return pids


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def _is_in_our_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == os.getpgrp()
    except ProcessLookupError:
        return False  # reaped meanwhile


def _reap(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False  # somebody else was quicker
