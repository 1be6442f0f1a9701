"""Log records of worker processes, for a program that tests them.

``celery.contrib.testing`` brings the records of prefork's processes to the
program's own loggers, where ``caplog`` of pytest finds them. It knows prefork
by the name of its module, so the same is done here for this pool.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import pickle
import sys
from types import FrameType
from typing import Any

import billiard

__all__ = ["LogRelay", "is_test_worker"]

TESTING = "celery.contrib.testing.worker"


def is_test_worker() -> bool:
    """Whether the worker that is starting, in this thread, is one of Celery's for tests."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == TESTING:
            return True
        frame = frame.f_back
    return False


class LogRelay:
    """Brings what forked processes log, from now until :meth:`stop`, to the root logger."""

    def __init__(self) -> None:
        with contextlib.suppress(ImportError):  # without it, tracebacks arrive as text
            from tblib import pickling_support  # type: ignore[import-not-found,unused-ignore]

            pickling_support.install()
        self._queue: Any = billiard.Queue()
        self._handler = _Handler(self._queue)
        root = logging.getLogger()
        root.addHandler(self._handler)  # which the processes inherit
        self._listener = logging.handlers.QueueListener(self._queue, root)  # type: ignore[arg-type]
        self._listener.start()

    def stop(self) -> None:
        """End it; what the processes have logged has arrived, when they have ended."""
        logging.getLogger().removeHandler(self._handler)
        self._listener.stop()
        self._queue.close()
        self._queue.join_thread()


class _Handler(logging.handlers.QueueHandler):
    """Sends records as they are, or, where that cannot be, as text."""

    def __init__(self, queue: Any) -> None:
        super().__init__(queue)
        self._listening_pid = os.getpid()

    def filter(self, record: logging.LogRecord) -> bool:  # type: ignore[override,unused-ignore]
        return os.getpid() != self._listening_pid and bool(super().filter(record))

    def prepare(self, record: logging.LogRecord) -> Any:
        try:
            pickle.loads(pickle.dumps(record))
        except Exception:  # which the record's arguments and exceptions may raise
            return super().prepare(record)
        return record
