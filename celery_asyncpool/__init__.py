"""A Celery worker pool for ``async def`` tasks: processes, each with one uvloop.

Select it with ``celery worker -P asyncpool`` or
``app.conf.worker_pool = "celery_asyncpool:Pool"``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pool import Pool

__all__ = ["Pool", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Every `celery` command imports this package for its entry point; only a
    # worker needs the pool.
    if name == "Pool":
        from .pool import Pool

        return Pool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
