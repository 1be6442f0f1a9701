"""RPC results: messages to a queue of this process's own, with one consumer.

All that async code of this process publishes names this queue as the one for
replies. What comes before anybody waits for it is kept, as Celery does.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import kombu
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError
from kombu.utils.uuid import uuid

from .listeners import Heard, Listener, Waiter, is_final

__all__ = ["RPCListener"]

logger = get_logger(__name__)

#: Results that nobody has waited for yet; the oldest are dropped, as Celery drops them.
BUFFER = 8192

#: Tasks whose results we remember to wait for.
EXPECTED = 100_000

#: Seconds between attempts to connect again.
RETRY = 0.5

#: Attempts after which those who wait are told.
ATTEMPTS = 20


class RPCListener(Listener):
    """Consumes the reply queue, from the first publish until the process ends."""

    ends_when_idle = False  # the queue goes with its consumer, and results with the queue

    def __init__(self, key: Any, app: Any, backend: Any) -> None:
        super().__init__(key, app, backend)
        #: The name of the queue.
        self.oid = uuid()
        self._consuming = threading.Event()
        self._error: BaseException | None = None
        self._buffer: OrderedDict[str, Heard] = OrderedDict()
        #: Tasks whose results will come here, or are in the buffer.
        self._expected: OrderedDict[str, None] = OrderedDict()

    def adopt_thread(self, timeout: float | None) -> None:
        """Make what the calling thread publishes be answered to our queue.

        Raises ``OperationalError`` when the queue is not there within *timeout* s.
        """
        self.add(_NOBODY, ())
        if not self._consuming.wait(timeout):
            raise OperationalError(f"no connection to the broker for RPC results: {self._error}")
        self._use_queue()

    def expect(self, task_ids: Iterable[str]) -> None:
        """In a publishing thread: these were sent, with our queue for their results."""
        self._expected.update(dict.fromkeys(task_ids))
        while len(self._expected) > EXPECTED:
            self._expected.popitem(last=False)

    def expects(self, task_id: str) -> bool:
        """Whether that result comes here, and has not been fetched."""
        return task_id in self._expected

    def add(self, waiter: Waiter, task_ids: Iterable[str]) -> None:
        task_ids = list(task_ids)
        super().add(waiter, task_ids)
        # After that: what comes meanwhile has been told, and is not expected any more.
        unknown = [task_id for task_id in task_ids if not self.expects(task_id)]
        self.deliver(self.look(task_ids))
        self.deliver({task_id: _never_comes(task_id) for task_id in unknown})

    def look(self, task_ids: Iterable[str]) -> dict[str, Heard]:
        found = {task_id: self._buffer.pop(task_id, None) for task_id in task_ids}
        heard = {task_id: what for task_id, what in found.items() if what is not None}
        for task_id in heard:
            self._expected.pop(task_id, None)
        return heard

    def run(self) -> None:
        self._use_queue()
        failures = 0
        while not (self.stopping and self.may_end()):
            try:
                self._consume()
            except self.app.connection().recoverable_connection_errors as exc:
                failures = 0 if self._consuming.is_set() else failures + 1
                self._on_lost(exc, failures)

    def _use_queue(self) -> None:
        """In any thread of ours: Celery takes our queue for the thread's own."""
        self.app._local.oid = self.oid
        backend = self.backend()
        if not backend.thread_safe:
            # The queue is declared: the consumer is there. Celery's way would
            # wait for a lost broker for ever.
            backend.on_task_call = _is_declared
            # A GroupResult would start Celery's own consumer on our queue, which
            # takes every other message and gives it to nobody.
            backend.add_pending_result = _is_listened_for

    def _consume(self) -> None:
        backend = self.backend()
        with self.app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=connection.connect_timeout)
            consumer = kombu.Consumer(
                connection.default_channel,
                [backend.binding],
                callbacks=[self._on_message],
                no_ack=True,
                accept=backend.accept,
            )
            consumer.consume()
            self._consuming.set()
            while not self.stopping:
                try:
                    connection.drain_events(timeout=1)
                except TimeoutError:
                    continue

    def _on_message(self, meta: dict[str, Any], message: Any) -> None:
        if not is_final(meta):
            return
        task_id = meta["task_id"]
        self._buffer[task_id] = meta
        # Whoever begins to wait after this looks into the buffer itself.
        if self.is_waited_for(task_id):
            self.deliver(self.look([task_id]))
        while len(self._buffer) > BUFFER:
            dropped, _ = self._buffer.popitem(last=False)
            self._expected.pop(dropped, None)

    def _on_lost(self, exc: BaseException, failures: int) -> None:
        if self._consuming.is_set():
            logger.warning("connection for RPC results lost (%s); connecting again", exc)
        self._consuming.clear()
        self._error = exc
        if failures >= ATTEMPTS:
            self.fail_all(exc)
        time.sleep(RETRY)


def _is_declared(producer: Any, task_id: str) -> None:
    """Instead of ``RPCBackend.on_task_call``."""


def _is_listened_for(result: Any, **options: Any) -> Any:
    """Instead of ``RPCBackend.add_pending_result``."""
    return result


def _never_comes(task_id: str) -> Heard:
    return RuntimeError(
        f"the RPC result of {task_id} does not come here: `await get(result)` works once, in the "
        "process that sent the task, with `adelay` or another of the awaitable functions"
    )


_NOBODY: Any = None
