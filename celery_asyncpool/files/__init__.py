"""Files as broker and for results: each is there whole, or not at all.

kombu's filesystem transport and Celery's file backend open a file and then write
it. Who reads between the two finds half of it, and kombu's reader, the worker, ends
with that. In a worker of ours messages and bindings are read with care, whoever has
written them, and what it writes itself appears under its name when it is complete.
"""

from __future__ import annotations

import os
from typing import Any

from celery.backends.filesystem import FilesystemBackend
from kombu.transport import filesystem
from kombu.utils.encoding import ensure_bytes

from .channel import Channel
from .writing import write_whole

__all__ = ["WholeFiles"]

#: The workers of this process that want it.
_wanted_by: set[WholeFiles] = set()


class WholeFiles:
    """Lets kombu's filesystem transport and Celery's file backend work so in this process.

    Its forks, too. Connections that are open stay as they are, and transports that
    are not kombu's own, but derived from it with a channel of their own.
    """

    def install(self) -> None:
        """Begin; harmless when repeated."""
        if not _wanted_by:
            _begin()
        _wanted_by.add(self)

    def uninstall(self) -> None:
        """End, unless another worker of this process wants it still."""
        if self in _wanted_by:
            _wanted_by.remove(self)
            if not _wanted_by:
                _end()


_transport: Any = filesystem.Transport
_backend: Any = FilesystemBackend
_kombu_channel = _transport.Channel
_celery_set = _backend.set


def _begin() -> None:
    global _kombu_channel, _celery_set
    _kombu_channel, _transport.Channel = _transport.Channel, Channel
    _celery_set, _backend.set = _backend.set, _set


def _end() -> None:
    # Not over what somebody else has put there meanwhile.
    if _transport.Channel is Channel:
        _transport.Channel = _kombu_channel
    if _backend.set is _set:
        _backend.set = _celery_set


def _set(backend: Any, key: bytes, value: Any) -> None:
    write_whole(os.fsdecode(backend._filename(key)), ensure_bytes(value))
