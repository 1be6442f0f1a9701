"""The worker's end, seen from Celery's main thread.

A warm shutdown waits for what runs. Meanwhile the main thread keeps the hub
going, broker connection included, so that acks leave, heartbeats beat, limits
hold and remote control (a revoke) is heard. The tasks' queues are no longer
read. A cold shutdown does not wait, and leaves Celery's hub alone: it may have
been interrupted by the very signal handler that runs this.
"""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

from celery.signals import worker_shutting_down
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from kombu.asynchronous import Hub
from kombu.common import ignore_errors

from .hub import HubThread
from .supervisor import Supervisor

__all__ = ["ColdSignals", "Shutdown", "is_cold_shutdown"]

logger = get_logger(__name__)

#: So many signals that ask for a cold shutdown leave no time to clean up.
AT_ONCE = 2

#: Celery's functions for them, in ``celery.apps.worker``.
COLD_HANDLERS = ("on_cold_shutdown", "during_soft_shutdown")

#: Seconds that the main thread waits at once, where it has no hub to run.
PAUSE = 0.2


def is_cold_shutdown() -> bool:
    """Whether Celery has decided not to wait; what it sets may be an exit code of 0."""
    return worker_state.should_terminate is not None and worker_state.should_terminate is not False


class ColdSignals:
    """Counts the signals that ask for a cold shutdown.

    Celery's handlers of signals announce it at their ends, and one may interrupt
    another, so those that are in progress are counted by looking at the stack.
    """

    def __init__(self) -> None:
        self._announced = 0
        self._in_progress = 0
        worker_shutting_down.connect(self._on_announcement)

    @property
    def count(self) -> int:
        """How many there were."""
        return self._announced + self._in_progress

    def begin(self, is_cold: bool) -> None:
        """A shutdown begins, perhaps in a handler, which goes on when it is over."""
        self._in_progress = _cold_handlers_in_progress()
        if is_cold and not self.count:
            self._in_progress = 1  # not by a signal, but cold it is

    def _on_announcement(self, how: str, **kwargs: Any) -> None:
        if how == "Cold":
            self._announced += 1


def _cold_handlers_in_progress() -> int:
    count = 0
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        is_celerys = frame.f_globals.get("__name__") == "celery.apps.worker"
        count += is_celerys and frame.f_code.co_name in COLD_HANDLERS
        frame = frame.f_back
    return count


class Shutdown:
    """Ends a supervisor and all its processes; :meth:`run` returns when they have gone.

    Arguments:
        supervisor: what is to end.
        hub: Celery's hub, None where its transport has none.
        thread: in which the supervisor lives where there is no hub.
        consumer: Celery's consumer with its connection, if it is still there.
        signals: how often somebody has asked for a cold shutdown.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        hub: Any,
        thread: HubThread | None,
        consumer: Any,
        signals: ColdSignals,
    ) -> None:
        self._supervisor = supervisor
        self._hub = hub
        self._thread = thread
        self._consumer = consumer
        self._own_hub: Hub | None = None
        self._finished = threading.Event()
        self._is_cold = False
        self._signals = signals

    def run(self, cold: bool = False) -> None:
        """End everything; a SIGQUIT that comes meanwhile makes it a *cold* shutdown.

        One more, and there is no time to clean up either.
        """
        is_cold = cold or is_cold_shutdown()
        self._signals.begin(is_cold)
        if is_cold:
            self._go_cold()
        else:
            self._go_warm()
        try:
            while not self._finished.is_set():
                if self._thread is not None and self._thread.has_crashed:
                    self._take_over()
                if is_cold_shutdown() and not self._is_cold:
                    self._go_cold()
                if self._is_cold and self._signals.count >= AT_ONCE:
                    self._call(self._supervisor.kill_all)
                self._turn()
        finally:
            if self._own_hub is not None:
                self._own_hub.close()

    def _go_warm(self) -> None:
        self._stop_consuming()
        if self._hub is not None:
            self._watch_broker()
            self._supervisor.attach(self._hub)  # Celery before 5.7 has just reset it
        self._call(self._supervisor.finish, self._finished.set)

    def _go_cold(self) -> None:
        self._is_cold = True
        if self._thread is None:
            self._leave_hub()
        self._call(self._supervisor.abort, self._finished.set)

    def _take_over(self) -> None:
        """The thread in which the supervisor lived has died: it lives here from now on."""
        logger.error("the pool's hub thread has died; its shutdown goes on without it")
        self._thread = None
        self._leave_hub()
        end = self._supervisor.abort if self._is_cold else self._supervisor.finish
        end(self._finished.set)

    def _call(self, function: Any, *args: Any) -> None:
        """Call *function* where the supervisor lives."""
        if self._thread is not None:
            self._thread.call(function, *args)
        else:
            function(*args)

    def _turn(self) -> None:
        """Let everything go on for a moment."""
        if self._thread is not None:
            self._serve_connection()
            return
        hub = self._own_hub or self._hub
        if hub is None:
            hub = self._leave_hub()
        try:
            hub.run_once()
        except Exception as exc:
            if hub is self._own_hub:
                raise
            logger.warning("the broker connection broke during the shutdown: %r", exc)
            self._leave_hub()

    def _leave_hub(self) -> Hub:
        """Go on in a hub of our own, without the broker."""
        if self._own_hub is None:
            self._own_hub = Hub()
            self._supervisor.attach(self._own_hub)
        return self._own_hub

    # The broker, without a hub: remote control is read by the main thread.

    def _serve_connection(self) -> None:
        connection = getattr(self._consumer, "connection", None)
        if connection is None or self._is_cold:
            self._finished.wait(PAUSE)
            return
        try:
            self._consumer.perform_pending_operations()
            connection.drain_events(timeout=PAUSE)
        except TimeoutError:
            return
        except Exception as exc:
            logger.warning("the broker connection broke during the shutdown: %r", exc)
            self._consumer = None

    # The broker, with a hub.

    def _stop_consuming(self) -> None:
        tasks = getattr(self._consumer, "task_consumer", None)
        if tasks is not None:
            ignore_errors(self._consumer, tasks.cancel)

    def _watch_broker(self) -> None:
        """Read the broker's connection again where Celery has just reset the hub (5.5, 5.6)."""
        connection = getattr(self._consumer, "connection", None)
        if connection is not None and not self._hub.readers:
            connection.transport.register_with_event_loop(connection.connection, self._hub)
