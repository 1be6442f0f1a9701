"""A Celery worker pool for ``async def`` tasks: processes, each with one uvloop.

Select it with ``celery worker -P asyncpool`` or
``app.conf.worker_pool = "celery_asyncpool:Pool"``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client.waiting import as_completed, gather, get
    from .pool import Pool
    from .task import AsyncTask, apply_async

__all__ = [
    "AsyncTask",
    "Pool",
    "__version__",
    "apply_async",
    "as_completed",
    "gather",
    "get",
]

__version__ = "0.1.0"

# Every `celery` command imports this package for its entry point, and needs none
# of these.
_HOMES = {
    "AsyncTask": ".task",
    "Pool": ".pool",
    "apply_async": ".task",
    "as_completed": ".client.waiting",
    "gather": ".client.waiting",
    "get": ".client.waiting",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home, __name__), name)
