"""kombu's Redis channels survive being closed twice.

Celery's worker (5.7) closes a channel twice when it loses its connection. The
second time kombu (5.7) looks for an address that is no longer known, and what
it raises, an ``AttributeError``, is no connection error to Celery: the worker
ends instead of connecting again, whatever its pool. It happens where a message
is unacknowledged and the loss was seen on the channel's other socket first.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

__all__ = ["survive_second_close"]


def survive_second_close() -> None:
    """Make that a connection error, in this process; harmless when repeated.

    Does nothing where kombu's Redis transport is not in use.
    """
    transport = sys.modules.get("kombu.transport.redis")
    if transport is not None and not hasattr(transport.Channel._connparams, "__wrapped__"):
        transport.Channel._connparams = _checked(transport.Channel._connparams)


def _checked(connparams: Any) -> Any:
    @functools.wraps(connparams)
    def _connparams(channel: Any, /, *args: Any, **kwargs: Any) -> Any:
        if channel.connection.client is None:
            raise ConnectionError("the connection to Redis was closed before its channel")
        return connparams(channel, *args, **kwargs)

    return _connparams
