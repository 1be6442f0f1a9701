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

import inspect
from typing import Any

from celery import signals
from celery.utils.dispatch import Signal
from celery.utils.log import get_logger

__all__ = [
    "asyncpool_process_started",
    "asyncpool_process_stopped",
    "asyncpool_process_stopping",
    "warn_of_async_receivers",
]

logger = get_logger(__name__)

_ARGUMENTS = ["hostname", "pid"]

#: The loop runs, the lifespans are up, no task has been taken.
asyncpool_process_started = Signal(name="asyncpool_process_started", providing_args=_ARGUMENTS)

#: The last task has ended; the lifespans are still up. Not sent when the process is killed.
asyncpool_process_stopping = Signal(name="asyncpool_process_stopping", providing_args=_ARGUMENTS)

#: The lifespans are closed; the loop still runs.
asyncpool_process_stopped = Signal(name="asyncpool_process_stopped", providing_args=_ARGUMENTS)

#: Celery's own signals of worker processes, sent while no loop runs, and ours instead.
_INSTEAD: tuple[tuple[Any, Any], ...] = (
    (signals.worker_process_init, asyncpool_process_started),
    (signals.worker_process_shutdown, asyncpool_process_stopping),
)


def warn_of_async_receivers() -> None:
    """Name in the log each async receiver of a signal of Celery's: nobody awaits it."""
    for celerys, ours in _INSTEAD:
        for receiver in celerys._live_receivers(None):
            if _is_async(receiver):
                logger.warning(
                    "%r is an `async def` receiver of %s, which Celery calls and nobody "
                    "awaits: it does nothing. Connect it to celery_asyncpool.signals.%s",
                    receiver,
                    celerys.name,
                    ours.name,
                )


def _is_async(receiver: Any) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(receiver))
