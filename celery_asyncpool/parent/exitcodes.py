"""SIGCHLD in the worker's main process."""

from __future__ import annotations

import signal
import threading

from celery.utils.log import get_logger

__all__ = ["hear_of_exits"]

logger = get_logger(__name__)


def hear_of_exits() -> bool:
    """Let the system keep exit codes until they are asked for; whether that was changed.

    Whoever starts the worker may have ignored SIGCHLD, which a new program inherits:
    then no exit code of a child is ever known, and billiard takes a dead process for
    one that runs. Outside of the main thread, where no handler can be set, it is left.
    """
    if signal.getsignal(signal.SIGCHLD) is not signal.SIG_IGN:
        return False
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return True
    logger.warning(
        "SIGCHLD is ignored in this process: the exit codes of worker processes are not known. "
        "Set it to signal.SIG_DFL before the worker starts"
    )
    return False
