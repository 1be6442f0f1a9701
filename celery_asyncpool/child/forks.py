"""What a body may start from here: forks that run no program, ``multiprocessing``.

A forked child starts as a copy of this process, and has things of it that are
right for a worker process only; and billiard, which has started this process,
has put itself in the place of :mod:`multiprocessing`, which bodies use.
"""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import process as stdlib_process
from typing import Any

from billiard import context, current_process, process

from .parent_signals import LEFT_TO_PARENT

__all__ = ["allow_forks"]


def allow_forks() -> None:
    """Let bodies fork and use ``multiprocessing``; call it once, in a worker process."""
    os.register_at_fork(
        before=_hold_signals,
        after_in_parent=_release_signals,
        after_in_child=_leave_worker_process,
    )
    current: Any = current_process()
    current._config["authkey"] = _AuthKey(current.authkey)


class _Thread(threading.local):
    """What a thread that forks has to remember."""

    mask: set[signal.Signals] | set[int] = set()


_thread = _Thread()


def _hold_signals() -> None:
    """Before a fork: a signal to the child waits until the child can take it.

    Else it would find the handlers of a worker process, which do nothing.
    """
    _thread.mask = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_PARENT)


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _thread.mask)


def _leave_worker_process() -> None:
    """In a child that was just forked: signals are its own, and at their defaults."""
    # The loop's wake-up socket is shared with the parent, whose loop would take
    # a signal to the child for one to itself (Python 3.11; later ones do this).
    signal.set_wakeup_fd(-1)
    # ``Process.terminate`` and ``Pool.__exit__`` send SIGTERM and wait for the end.
    for signum in LEFT_TO_PARENT:
        default = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL
        signal.signal(signum, default)
    _release_signals()


class _AuthKey(stdlib_process.AuthenticationString):  # type: ignore[misc, name-defined]
    """This process's key, for :mod:`multiprocessing` and for billiard.

    Both find it where billiard has put its own, and hand it only to what they
    spawn themselves.
    """

    def __reduce__(self) -> Any:
        if context.get_spawning_popen() is not None:  # type: ignore[attr-defined]
            return process.AuthenticationString, (bytes(self),)
        return super().__reduce__()
