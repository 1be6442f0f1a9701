"""What monitoring tools need of a worker process: at its start, and at its end.

At the end the last batch of what they hold is sent. Their own hooks are not on
our way: some wrap functions of Celery's own child process, and handlers of
``atexit`` do not run in a forked process.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from celery.utils.log import get_logger

__all__ = ["flush_monitoring", "prepare_monitoring"]

logger = get_logger(__name__)


class _NoTrace:
    """Stands in New Relic's cache of running traces, for none."""

    transaction = None


_no_trace = _NoTrace()


def prepare_monitoring() -> None:
    """Make the tools that are in use find a job's body where its tracer has begun it."""
    newrelic: Any = sys.modules.get("newrelic.core.trace_cache")
    if hasattr(newrelic, "trace_cache"):
        # It looks at greenlets only while there is something in its cache, so
        # it would begin the first transaction under another key than it looks
        # for later. The cache refers to this weakly.
        newrelic.trace_cache()[__name__] = _no_trace


def flush_monitoring(timeout: float) -> None:
    """Have the tools that are in use send what they hold, in *timeout* seconds altogether."""
    deadline = time.monotonic() + timeout
    threads = [
        threading.Thread(target=_call, args=(flush, timeout), daemon=True)
        for flush in _flushes_over_network()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        # A tool may know no time limit of its own, or not keep to it.
        thread.join(max(deadline - time.monotonic(), 0.0))
    _save_coverage()


def _call(flush: Callable[[float], object], timeout: float) -> None:
    try:
        flush(timeout)
    except Exception as exc:
        logger.error("a monitoring tool could not send its last batch: %r", exc, exc_info=True)


def _flushes_over_network() -> Iterator[Callable[[float], object]]:
    sentry = sys.modules.get("sentry_sdk")
    if sentry is not None:
        yield lambda timeout: sentry.flush(timeout=timeout)
    newrelic = sys.modules.get("newrelic.core.agent")
    if newrelic is not None:
        yield newrelic.shutdown_agent
    for provider in _opentelemetry_providers():
        yield _OpenTelemetryFlush(provider)


class _OpenTelemetryFlush:
    """Sends what a provider of spans, metrics or logs holds, and ends it."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider

    def __call__(self, timeout: float) -> None:
        if hasattr(self._provider, "force_flush"):
            self._provider.force_flush(int(timeout * 1000))
        if hasattr(self._provider, "shutdown"):
            self._provider.shutdown()


def _opentelemetry_providers() -> Iterator[Any]:
    """The providers that somebody has set; the API's own have nothing to send."""
    for module, getter in (
        ("opentelemetry.trace", "get_tracer_provider"),
        ("opentelemetry.metrics", "get_meter_provider"),
        ("opentelemetry._logs", "get_logger_provider"),
    ):
        api = sys.modules.get(module)
        if api is not None:
            yield getattr(api, getter)()


def _save_coverage() -> None:
    """Write which lines were run; last, and here: it is about all of the process."""
    coverage = sys.modules.get("coverage")
    measured = coverage.Coverage.current() if coverage is not None else None
    if measured is not None:
        try:
            measured.save()
        except Exception as exc:
            logger.error("coverage could not save its data: %r", exc, exc_info=True)
