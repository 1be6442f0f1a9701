"""Celery's request, with one outcome for each task.

Celery's own ``Request`` announces a termination at once, on the assumption
that the process is killed in the same moment. Here the task may end by itself
before its body can be ended, and only its process knows which came first, so
the request asks, and announces what it is told.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]
from celery import states
from celery.app.trace import task_has_custom
from celery.exceptions import TimeLimitExceeded
from celery.platforms import signals
from celery.worker import request

__all__ = ["DEFAULT_REQUEST", "Request", "use_request"]

#: What ``Task.Request`` is where nobody has chosen another one.
DEFAULT_REQUEST = "celery.worker.request:Request"


class Request(request.Request):
    """Reports a terminated or timed-out task once, when its fate is known."""

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End the task's body, whatever *signal* says; then it is revoked.

        A task that waits for a slot is found revoked when it gets one.
        """
        reference: Any = getattr(self, "_apply_result", None)  # weak
        result = reference() if reference is not None else None
        if result is not None:
            result.terminate(signals.signum(signal or "SIGTERM"))

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> Any:
        """As Celery's; of a limit that the worker itself enforced, it tells the handlers."""
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
        exc = exc_info.exception
        if isinstance(exc, ExceptionWithTraceback):
            exc = exc.exc
        if isinstance(exc, TimeLimitExceeded) and not return_ok:
            # The process could not: the body refused to end or blocked it.
            self._tell_handlers(exc, exc_info)

    def _tell_handlers(self, exc: Exception, exc_info: Any) -> None:
        task: Any = self.task
        args = self.args, self.kwargs
        if task_has_custom(task, "on_failure"):
            _finish(task.on_failure(exc, self.id, *args, exc_info))
        if task_has_custom(task, "after_return"):
            _finish(task.after_return(states.FAILURE, exc, self.id, *args, None))


def use_request(app: Any) -> None:
    """Let the tasks of *app* use :class:`Request`, but for those with one of their own."""
    for task in app.tasks.values():
        if task.Request == DEFAULT_REQUEST:
            task.Request = f"{__name__}:Request"


def _finish(value: Any) -> None:
    """Run an async handler to its end; the worker's main process has no loop."""
    if inspect.isawaitable(value):
        asyncio.run(_await(value))


async def _await(awaitable: Any) -> Any:
    return await awaitable
