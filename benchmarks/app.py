"""The Celery app that is measured: each body as ``def`` and as ``async def`` task.

The worker gets its broker and result backend from Celery's own environment
variables, ``CELERY_BROKER_URL`` and ``CELERY_RESULT_BACKEND``; other settings come
from ``BENCHMARK_SETTINGS``, as JSON.
"""

from __future__ import annotations

import json
import os

from celery import Celery

from .bodies import ASYNC, SYNC

__all__ = ["app"]

app = Celery("benchmarks", set_as_current=False)
app.conf.update(json.loads(os.environ.get("BENCHMARK_SETTINGS", "{}")))

for _form, _bodies in (("sync", SYNC), ("async", ASYNC)):
    for _name, _body in _bodies.items():
        app.task(_body, name=f"{_form}.{_name}")
