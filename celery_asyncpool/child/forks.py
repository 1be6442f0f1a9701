"""What a body may start from here: forks that run no program, ``multiprocessing``.

A forked child starts as a copy of this process, and has things of it that are
right for a worker process only; and billiard, which has started this process,
has put itself in the place of :mod:`multiprocessing`, which bodies use.

Such a child ends where the code ends that has forked it, as a program would:
it must neither report the job's outcome, nor turn the loop, nor take jobs.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import traceback
from multiprocessing import process as stdlib_process
from typing import Any

from billiard import context, current_process, process

from .parent_signals import LEFT_TO_PARENT

__all__ = ["allow_forks", "end_copies_that_turn", "end_copy", "ends_copies"]


def allow_forks() -> None:
    """Let bodies fork and use ``multiprocessing``; call it once, in a worker process."""
    os.register_at_fork(
        before=_hold_signals,
        after_in_parent=_release_signals,
        after_in_child=_leave_worker_process,
    )
    current: Any = current_process()
    current._config["authkey"] = _AuthKey(current.authkey)


def end_copies_that_turn(loop: Any) -> None:
    """See to it that a forked child does not run what waits on this process's *loop*."""

    # The backstop, for what returns to the loop and not to the pool: an asyncio
    # task that a body has started. How it ended, nobody can tell then.
    def after_in_child() -> None:
        if not loop.is_closed():
            _hear_nothing(loop)
            loop.call_soon(end_copy, None)

    os.register_at_fork(after_in_child=after_in_child)


def _hear_nothing(loop: Any) -> None:
    """Give *loop* a poller of its own: else it would take what its parent's is to hear."""
    selector = getattr(loop, "_selector", None)
    fd = loop._get_backend_id() if selector is None else selector.fileno()
    if hasattr(select, "epoll"):  # no fork inherits a kqueue
        with select.epoll() as nothing:
            os.dup2(nothing.fileno(), fd, inheritable=False)


class _EndsCopies:
    """A context manager for a call of code that may fork: in the forked child it ends there.

    The exit code is that of ``sys.exit``, 1 after an error, else 0.
    """

    #: Whether this process is a child that a body has forked.
    is_copy = False

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: Any, error: BaseException | None, where: Any) -> None:
        if self.is_copy:
            end_copy(error)


ends_copies = _EndsCopies()


def end_copy(error: BaseException | None) -> None:
    """End this forked child without anything that is its parent's to do at exit."""
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if error.code is not None and not isinstance(error.code, int):
            _write(f"{error.code}\n")
    elif error is not None:
        code = 1
        _write("".join(traceback.format_exception(error)))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or gone: nothing is to be saved
            stream.flush()
    os._exit(code & 0xFF)


def _write(text: str) -> None:
    # Straight to the descriptor: Celery has put its log in the place of sys.stderr,
    # whose locks another thread may have held at the fork.
    with contextlib.suppress(OSError):
        os.write(2, text.encode(errors="backslashreplace"))


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
    ends_copies.is_copy = True
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
