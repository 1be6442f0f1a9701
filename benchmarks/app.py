"""The Celery app that is measured: each body as ``def`` and as ``async def`` task.

The worker gets its broker and result backend from Celery's own environment
variables, ``CELERY_BROKER_URL`` and ``CELERY_RESULT_BACKEND``.
"""

from __future__ import annotations

import os

from celery import Celery

from .bodies import ASYNC, SYNC

__all__ = ["app"]

app = Celery("benchmarks", set_as_current=False)
if "BENCHMARK_THREADS" in os.environ:
    app.conf.asyncpool_threads = int(os.environ["BENCHMARK_THREADS"])

for _form, _bodies in (("sync", SYNC), ("async", ASYNC)):
    for _name, _body in _bodies.items():
        app.task(_body, name=f"{_form}.{_name}")
