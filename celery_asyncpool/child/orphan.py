"""The thread that ends a process whose parent has gone.

When the worker's main process is killed, its end of the pipe closes. The loop
sees that, cancels its bodies and exits; where the loop is blocked, or a body
does not end, this thread does what has to be done in time: it kills the
subprocesses and then its own process.

A fork of the main process (a receiver of ``worker_ready``, ``multiprocessing``)
has a copy of the pipe's end, and may outlive it. So the main process itself is
watched too, where the system can do that (Linux's pidfd), else looked at once in
a second.

The kernel's own means (``PR_SET_PDEATHSIG``, which Celery's
``process_initializer`` sets to SIGKILL) would end the process before it could
do anything about its subprocesses, so it is taken back.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable

from billiard.util import set_pdeathsig  # type: ignore[attr-defined]
from celery.utils.log import get_logger

from ..leftovers import kill_leftovers

__all__ = ["EX_ORPHAN", "ORPHAN_GRACE", "OrphanGuard"]

logger = get_logger(__name__)

#: Exit code of a process that its parent has left.
EX_ORPHAN = 0x9E

#: Seconds that bodies get to clean up when the worker's main process is gone,
#: and those that the loop gets on top to end by itself.
ORPHAN_GRACE = 1.0
MARGIN = 0.4

#: Milliseconds between two looks at the parent, where it cannot be watched.
LOOK_INTERVAL = 1000


class OrphanGuard:
    """Ends this process, in time, once its parent is gone or has closed the pipe.

    Arguments:
        fd: the pipe's descriptor, which somebody else reads.
        parent: the pid of the worker's main process.
    """

    def __init__(self, fd: int, parent: int) -> None:
        self._fd = fd
        self._parent = parent
        self._tell: Callable[[], object] | None = None
        self._thread = threading.Thread(target=self._run, name="asyncpool-orphan", daemon=True)

    def start(self) -> None:
        """From now on the death of the parent is ours to handle."""
        try:
            set_pdeathsig(0)
        except OSError:
            logger.debug("this system has no parent-death signal to take back")
        self._thread.start()

    def tell(self, function: Callable[[], object]) -> None:
        """Call *function*, in the guard's thread, when the parent has gone."""
        self._tell = function

    def _run(self) -> None:
        self._wait()
        if self._tell is not None:
            self._tell()
        time.sleep(ORPHAN_GRACE + MARGIN)
        kill_leftovers(os.getpid())
        os._exit(EX_ORPHAN)

    def _wait(self) -> None:
        """Wait for the end of the pipe, or of the parent."""
        poll = select.poll()
        poll.register(self._fd, 0)  # nothing but its end
        parent_fd = _open_process(self._parent)
        if parent_fd is not None:
            poll.register(parent_fd, select.POLLIN)
        interval = None if parent_fd is not None else LOOK_INTERVAL
        # The parent may have died, and its number be another's, before it was opened.
        while os.getppid() == self._parent and not poll.poll(interval):
            continue


def _open_process(pid: int) -> int | None:
    """A descriptor that is readable once process *pid* has ended; None: there is none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None  # another system, an old kernel, or forbidden by a sandbox
