"""The thread that ends a process whose parent has gone.

When the worker's main process is killed, its end of the pipe closes. The loop
sees that, cancels its bodies and exits; where the loop is blocked, or a body
does not end, this thread does what has to be done in time: it kills the
subprocesses and then its own process.

The kernel's own means (``PR_SET_PDEATHSIG``, which Celery's
``process_initializer`` sets to SIGKILL) would end the process before it could
do anything about its subprocesses, so it is taken back.
"""

from __future__ import annotations

import os
import select
import threading
import time

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


class OrphanGuard:
    """Ends this process, in time, once the other end of its pipe is closed.

    Arguments:
        fd: the pipe's descriptor, which somebody else reads.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._thread = threading.Thread(target=self._run, name="asyncpool-orphan", daemon=True)

    def start(self) -> None:
        """From now on the death of the parent is ours to handle."""
        try:
            set_pdeathsig(0)
        except OSError:
            logger.debug("this system has no parent-death signal to take back")
        self._thread.start()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._fd, 0)  # nothing but its end
        poll.poll()
        time.sleep(ORPHAN_GRACE + MARGIN)
        kill_leftovers(os.getpid())
        os._exit(EX_ORPHAN)
