"""Letting go of what a fork has copied from the worker's main process."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Iterable
from contextlib import closing
from typing import Any

from kombu.asynchronous import get_event_loop, set_event_loop
from kombu.pools import connections

__all__ = ["forget_parent"]


def forget_parent(close_fds: tuple[int, ...]) -> None:
    """Let go of the pipes *close_fds*, the parent's hub, and the broker's connections.

    To be called before anything else in the fork: what else closes a copy of such a
    connection may say goodbye on it, or shut it down for both.
    """
    # What exists now is the parent's. Never looking at it again keeps its pages shared.
    gc.freeze()
    hub = get_event_loop()
    fds = set(close_fds)
    if hub is not None:
        fds.update(_hub_fds(hub))
        set_event_loop(None)
    fds.update(_pooled_fds())
    brokers = set(filter(None, map(_peer, fds)))
    if brokers:
        # Connections for events and replies: no hub knows them.
        fds.update(fd for fd in _open_fds() if _peer(fd) in brokers)
    # Not closed but replaced: objects that still refer to such a number must
    # not write to a descriptor of ours that happens to get it later.
    still_open = [fd for fd in fds if _is_open(fd)]
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in still_open:
        os.dup2(nothing, fd, inheritable=False)
    os.close(nothing)


def _hub_fds(hub: Any) -> Iterable[int]:
    for fd in (*hub.readers, *hub.writers):
        if isinstance(fd, int):
            yield fd
    waker = getattr(hub, "_waker", None)  # since kombu 5.7
    poller = getattr(hub.poller, "_epoll", None)
    for file in (poller, getattr(waker, "reader", None), getattr(waker, "writer", None)):
        if file is not None and file.fileno() >= 0:
            yield file.fileno()


def _pooled_fds() -> Iterable[int]:
    """The AMQP connections in kombu's pools, which may be to another server than the hub's."""
    for pool in connections.values():
        for connection in (*pool._dirty, *pool._resource.queue):
            transport = getattr(getattr(connection, "_connection", None), "transport", None)
            sock = getattr(transport, "sock", None)
            if sock is not None and sock.fileno() >= 0:
                yield sock.fileno()


def _is_open(fd: int) -> bool:
    """Whether *fd* is open; a hub may remember one that is not, after a reconnect."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _open_fds() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        return []


def _peer(fd: int) -> Any:
    """Whom the socket *fd* is connected to; None for an unnamed one, and for no socket."""
    try:
        duplicate = os.dup(fd)
    except OSError:
        return None  # not open any more
    try:
        sock = socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        return None
    with closing(sock):
        try:
            return sock.getpeername() or None
        except OSError:
            return None  # not connected
