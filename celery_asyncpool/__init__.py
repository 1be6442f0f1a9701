"""A Celery worker pool for ``async def`` tasks: processes, each with one uvloop.

Select it with ``celery worker -P asyncpool`` or
``app.conf.worker_pool = "celery_asyncpool:Pool"``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client.waiting import as_completed, gather, get
    from .decorator import async_task
    from .lifespans import Lifespan, LifespanError, lifespan
    from .pool import Pool
    from .task import AsyncTask, apply_async

__all__ = [
    "AsyncTask",
    "Lifespan",
    "LifespanError",
    "Pool",
    "__version__",
    "apply_async",
    "as_completed",
    "async_task",
    "gather",
    "get",
    "lifespan",
]

__version__ = "0.1.0"

#: Where each public name is.
_MODULES = {
    "AsyncTask": ".task",
    "Lifespan": ".lifespans",
    "LifespanError": ".lifespans",
    "Pool": ".pool",
    "apply_async": ".task",
    "as_completed": ".client.waiting",
    "async_task": ".decorator",
    "gather": ".client.waiting",
    "get": ".client.waiting",
    "lifespan": ".lifespans",
}


def __getattr__(name: str) -> Any:
    # Every `celery` command imports this package for its entry point; only a
    # worker needs the pool, and only a project the rest.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "Pool":
        # A sentence, where its modules would raise an ImportError.
        importlib.import_module(".requirements", __name__).check_greenlet()
    return getattr(importlib.import_module(_MODULES[name], __name__), name)
