"""Descriptors of the event loops that this process has."""

from __future__ import annotations

import os

__all__ = ["open_pollers"]

POLLER = "anon_inode:[eventpoll]"


def open_pollers() -> set[int]:
    """Return the descriptors of all epoll instances; none where the system has no /proc."""
    pollers = set()
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return set()
    for name in names:
        try:
            if os.readlink(f"/proc/self/fd/{name}") == POLLER:
                pollers.add(int(name))
        except OSError:
            continue  # closed meanwhile, as the one that listed them
    return pollers
