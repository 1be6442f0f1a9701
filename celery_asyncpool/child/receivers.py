"""Receivers of the signals that a task's tracer sends: each is a step.

``Signal.send`` stays Celery's: which receivers there are, in which order, for
which sender, and that it logs what one raises. Only what it calls for each is
another: a step where the tracer of a job sends (:mod:`.steps`), else the receiver
itself. It is asked at each send, so receivers may come and go.
"""

from __future__ import annotations

import functools
from typing import Any

from ..signals import wrap_receivers
from ..tasktypes import is_async
from .jobcontext import JobContext, current_job
from .steps import can_step

__all__ = ["call_receivers_as_steps"]

#: Packages whose receivers do nothing that blocks: they stay on the loop, since
#: a thread would cost more than they do.
IN_PLACE = ("celery", "opentelemetry")


def call_receivers_as_steps() -> None:
    """In this process, from now on."""
    wrap_receivers(_as_steps)


def _as_steps(name: str, receivers: list[Any]) -> list[Any]:
    job = current_job()
    if job is None or not can_step(job):
        return receivers
    return [
        receiver if is_in_place(receiver) else _ReceiverCall(name, receiver, job)
        for receiver in receivers
    ]


def is_in_place(receiver: Any) -> bool:
    """Whether *receiver* is known to block nobody."""
    function = getattr(receiver, "__func__", receiver)
    # A closure of Celery's around a receiver that is to be tried again and again.
    if hasattr(receiver, "_dispatch_uid"):
        return False
    return (getattr(function, "__module__", None) or "").partition(".")[0] in IN_PLACE


class _ReceiverCall:
    """One call of one receiver."""

    __slots__ = ("_job", "_name", "_receiver")

    def __init__(self, name: str, receiver: Any, job: JobContext) -> None:
        self._name = name
        self._receiver = receiver
        self._job = job

    def __repr__(self) -> str:
        return repr(self._receiver)  # for Celery's log

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        assert self._job.steps is not None
        call = functools.partial(self._receiver, *args, **kwargs)
        return self._job.steps.run(self._job, self._name, call, is_async(self._receiver))
