"""The pools that are compared: how each is started, and which task it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import app

__all__ = ["COMMON_OPTIONS", "POOLS", "PoolSpec"]

#: Options of ``celery worker`` that all pools get.
COMMON_OPTIONS = (
    "-l",
    "WARNING",
    "--without-gossip",
    "--without-mingle",
    "--without-heartbeat",
)


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """One way to run a worker.

    Attributes:
        options: of ``celery worker``, as a user would give them.
        task: the no-op task in the form that suits the pool.
    """

    options: tuple[str, ...]
    task: Any


POOLS = {
    "asyncpool": PoolSpec(("-P", "asyncpool", "-c", "200", "--processes", "2"), app.async_noop),
    "prefork": PoolSpec(("-P", "prefork", "-c", "2"), app.noop),
}
