"""The Celery app and the tasks that are measured.

The worker gets its broker and result backend from Celery's own environment
variables, ``CELERY_BROKER_URL`` and ``CELERY_RESULT_BACKEND``.
"""

from __future__ import annotations

from celery import Celery

__all__ = ["app", "async_noop", "noop"]

app = Celery("benchmarks", set_as_current=False)


@app.task
async def async_noop(number: int) -> int:
    """Do nothing, for pools that run ``async def``; return *number*."""
    return number


@app.task
def noop(number: int) -> int:
    """Do nothing; return *number*."""
    return number
