"""Signals of the pool's processes; receivers may be plain functions or ``async def``.

    @asyncpool_process_started.connect
    async def warm_up(sender, pid, **kwargs):
        ...

They are sent on the process's event loop, and the next step waits until all
receivers have ended, within ``asyncpool_lifespan_timeout``. What a receiver
raises is logged. The arguments are those of Celery's own signals: ``sender``
(the app), ``hostname`` (the worker's node name) and ``pid``. As there, receivers
must accept ``**kwargs``, and are held weakly unless connected with ``weak=False``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

from celery import signals
from celery.utils.dispatch import Signal
from celery.utils.log import get_logger

from .tasktypes import is_async

__all__ = [
    "TRACER_SIGNALS",
    "asyncpool_process_started",
    "asyncpool_process_stopped",
    "asyncpool_process_stopping",
    "warn_of_async_receivers",
    "wrap_receivers",
]

logger = get_logger(__name__)

_ARGUMENTS = ["hostname", "pid"]

#: The loop runs, the lifespans are up, no task has been taken.
asyncpool_process_started = Signal(name="asyncpool_process_started", providing_args=_ARGUMENTS)

#: The last task has ended; the lifespans are still up. Not sent when the process is killed.
asyncpool_process_stopping = Signal(name="asyncpool_process_stopping", providing_args=_ARGUMENTS)

#: The lifespans are closed; the loop still runs.
asyncpool_process_stopped = Signal(name="asyncpool_process_stopped", providing_args=_ARGUMENTS)

#: Sent by a task's tracer in its process, which awaits their async receivers.
TRACER_SIGNALS: tuple[Any, ...] = (
    signals.task_prerun,
    signals.task_postrun,
    signals.task_success,
    signals.task_failure,
    signals.task_retry,
    signals.task_internal_error,
)

#: Celery's own signals of worker processes, sent while no loop runs, and ours instead.
_INSTEAD: dict[str, Any] = {
    "worker_process_init": asyncpool_process_started,
    "worker_process_shutdown": asyncpool_process_stopping,
}


#: What is called in the place of a signal's receivers; given its name and a list of them.
Wrap = Callable[[str, list[Any]], list[Any]]


def wrap_receivers(wrap: Wrap) -> None:
    """Call what *wrap* returns for the receivers of a tracer's signals, in this process.

    Which receivers there are, in which order, for which sender, and that the log
    tells what one raises, stays Celery's: *wrap* is asked at each send. Harmless
    when repeated.
    """
    for signal in TRACER_SIGNALS:
        inner = signal._live_receivers
        if not (isinstance(inner, _LiveReceivers) and inner.has(wrap)):
            signal._live_receivers = _LiveReceivers(signal.name, inner, wrap)


class _LiveReceivers:
    """``Signal._live_receivers`` of one signal, which ``send`` asks whom to call."""

    def __init__(self, name: str, inner: Callable[[Any], list[Any]], wrap: Wrap) -> None:
        self._name = name
        self._inner = inner
        self._wrap = wrap

    def __call__(self, sender: Any) -> list[Any]:
        receivers = self._inner(sender)
        return self._wrap(self._name, receivers) if receivers else receivers

    def has(self, wrap: Wrap) -> bool:
        """Whether *wrap* is asked already."""
        inner = self._inner
        return self._wrap == wrap or (isinstance(inner, _LiveReceivers) and inner.has(wrap))


def warn_of_async_receivers() -> None:
    """Name in the log each async receiver of a signal of Celery's that nobody awaits."""
    for signal in vars(signals).values():
        if isinstance(signal, Signal) and signal not in TRACER_SIGNALS:
            for receiver in _receivers(signal):
                if is_async(receiver):
                    _warn(signal, receiver)


def _warn(signal: Any, receiver: Any) -> None:
    instead = _INSTEAD.get(signal.name)
    advice = (
        f"Connect it to celery_asyncpool.signals.{instead.name}"
        if instead is not None
        else "Make it a plain function"
    )
    logger.warning(
        "%r is an `async def` receiver of %s, which Celery calls and nobody awaits: "
        "it does nothing. %s",
        receiver,
        signal.name,
        advice,
    )


def _receivers(signal: Any) -> Iterator[Any]:
    """All live receivers of *signal*, for whatever sender."""
    for _, receiver in list(signal.receivers):
        live = receiver() if isinstance(receiver, weakref.ReferenceType) else receiver
        if live is not None:
            yield live
