"""Signals of which a worker process takes no notice: its parent says when to go.

They come when a whole group of processes is signalled (Ctrl-C, ``systemctl
stop``). A body may set handlers of its own for them, as a program that it has
been before would, and take them off again; a process with many jobs must not
be ended by that.
"""

from __future__ import annotations

import asyncio
import signal
from types import FrameType

__all__ = ["LEFT_TO_PARENT", "ParentSignals", "leave_to_parent", "take_back_signals"]

#: SIGHUP comes to a stopped process when its parent dies, with a SIGCONT.
LEFT_TO_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def leave_to_parent(signum: int, frame: FrameType | None) -> None:
    """Do nothing: the parent says when to go, also when a whole group is signalled.

    A function, not SIG_IGN, which every subprocess would inherit.
    """


def take_back_signals() -> None:
    """Leave the signals to the parent; to be called in the main thread."""
    for signum in LEFT_TO_PARENT:
        signal.signal(signum, leave_to_parent)


class ParentSignals:
    """Sees to it that no handler of a body outlives it, on *loop* or not."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def take_back(self) -> None:
        """Undo what bodies have done; in the main thread, where one may have ended."""
        for signum in LEFT_TO_PARENT:
            if signal.getsignal(signum) is not leave_to_parent:
                self._loop.remove_signal_handler(signum)
                signal.signal(signum, leave_to_parent)
