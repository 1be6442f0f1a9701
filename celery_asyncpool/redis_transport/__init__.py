"""kombu's Redis transport with batches, and how a worker comes to use it.

Messages are moved from their queues to the unacknowledged ones by one script, many
at a time, so none is ever only on its way; acknowledgements leave together. Keys
and formats are kombu's: workers with and without it share queues.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from .ledger import Shared

__all__ = ["RedisBatching", "batched"]


class RedisBatching:
    """Gives the connections from which a worker consumes our transport.

    Only those that the app makes in this process from now on: not the producers',
    and not the children's, who inherit the app.
    """

    def __init__(self, is_on: bool = True) -> None:
        self._shared = Shared("" if is_on else "asyncpool_redis_batching is False")
        self._is_on = is_on
        self._app: Any = None
        self._pid = os.getpid()

    def install(self, app: Any) -> None:
        """Begin, with *app*."""
        if self._is_on:
            self._app = app
            app.connection_for_read = functools.partial(self._connect, app)

    def uninstall(self) -> None:
        """End, unless another worker of this process has begun meanwhile."""
        if self._app is not None:
            connect = vars(self._app).get("connection_for_read")
            if getattr(connect, "func", None) == self._connect:
                del self._app.connection_for_read
            self._app = None

    def _connect(self, app: Any, url: str | None = None, **options: Any) -> Any:
        connection = type(app).connection_for_read(app, url, **options)
        return batched(connection, self._shared) if os.getpid() == self._pid else connection

    def info(self) -> dict[str, object]:
        """For ``celery inspect stats``."""
        return self._shared.info()


def batched(connection: Any, shared: Shared | None = None) -> Any:
    """Let a kombu *connection* use our transport if kombu's own is that for Redis."""
    shared = shared or Shared()
    connection.get_transport_cls = functools.partial(_transport_class, connection, shared)
    return connection


def _transport_class(connection: Any, shared: Shared) -> Any:
    """Asked whenever a transport is needed: a failover may lead to one of another kind."""
    stock = type(connection).get_transport_cls(connection)
    if stock.driver_type != "redis":
        shared.unused_reason = "the broker is not Redis"
        return stock
    # Only now: where Redis is the broker, its library is there.
    from .transport import ours_for

    ours = ours_for(stock)
    if ours is None:
        shared.unused_reason = f"the transport is not kombu's own: {stock.__module__}"
        return stock
    shared.unused_reason = ""
    return _shared_class(ours, shared)


@functools.cache
def _shared_class(ours: type, shared: Shared) -> type:
    return type(ours.__name__, (ours,), {"shared": shared, "__module__": ours.__module__})
