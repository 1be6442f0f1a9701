"""What the pool changes in the process that it starts in, and sets back when it stops.

Celery runs a worker in the main thread of a process that has no other purpose.
In another thread (``celery.contrib.testing`` starts it in one) the worker is the
guest of a program, whose garbage collector, orphans and dead children it leaves alone.
"""

from __future__ import annotations

import gc
import os
import signal
import threading

from ..garbage import collect_less_often, restore_thresholds
from .adopted import become_subreaper, is_subreaper, stop_being_subreaper
from .exitcodes import hear_of_exits
from .log_relay import LogRelay, is_test_worker

__all__ = ["MainProcess"]

#: Celery's modules bind tasks of a fresh interpreter differently, and know it by this.
SPAWNED_VARIABLE = "FORKED_BY_MULTIPROCESSING"


class MainProcess:
    """The process that the pool starts in; made in the thread that the worker runs in."""

    def __init__(self) -> None:
        #: Whether it is there for the worker alone.
        self.is_workers_own = threading.current_thread() is threading.main_thread()
        self._spawned_variable = os.environ.get(SPAWNED_VARIABLE)
        self._gc_thresholds = gc.get_threshold()
        self._had_frozen = gc.get_freeze_count() > 0
        self._was_subreaper = is_subreaper()
        self._had_ignored_sigchld = False
        self._log_relay: LogRelay | None = None

    def prepare(self, *, spawns: bool, gc_threshold: int) -> None:
        """Make ready for worker processes to start, which are spawned or else forked."""
        if spawns:
            os.environ[SPAWNED_VARIABLE] = "1"
        self._had_ignored_sigchld = hear_of_exits()
        if not self.is_workers_own:
            if not spawns and is_test_worker():
                self._log_relay = LogRelay()
            return
        become_subreaper()
        collect_less_often(gc_threshold)
        gc.collect()
        gc.freeze()  # what is there now stays, and stays shared with all processes

    def restore(self) -> None:
        """Set everything back; when the worker processes have gone."""
        if self._spawned_variable is None:
            os.environ.pop(SPAWNED_VARIABLE, None)
        if self._had_ignored_sigchld:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        if self._log_relay is not None:
            self._log_relay.stop()
        if not self.is_workers_own:
            return
        restore_thresholds(self._gc_thresholds)
        if not self._had_frozen:
            gc.unfreeze()
        if not self._was_subreaper:
            stop_being_subreaper()
