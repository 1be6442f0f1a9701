"""A connection to Redis on the event loop, for the few commands that store a result.

What is asked for in one turn of the loop leaves in one write, and nobody waits
for the replies to earlier ones. redis-py makes the connection, with all that
belongs to it (names and passwords, databases, Sentinel); it has no way to use it
that costs less than the tasks whose results are stored.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from contextvars import Context
from typing import Any

from ..core.resp import Replies, Reply, UnknownReplyError

__all__ = ["RedisLine", "open_line", "take_connection"]

#: The replies to what was asked, or None when the connection was lost before.
Answer = list[Reply] | None


class RedisLine(asyncio.Protocol):
    """Asks Redis, and gives the replies to who has asked.

    Arguments:
        loop: the loop on which it lives.
        timeout: seconds in which Redis has to reply; None: any time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout: float | None) -> None:
        self._loop = loop
        self._timeout = timeout
        self._transport: Any = None
        self._replies = Replies()
        #: Commands of this turn.
        self._unsent: list[bytes] = []
        #: Who has asked, how many replies they get, and those that have come.
        self._asked: deque[tuple[asyncio.Future[Answer], int, list[Reply]]] = deque()
        #: When a reply has come, or the first question since all were answered.
        self._oldest = 0.0
        self._timer: asyncio.TimerHandle | None = None
        #: Of our own callbacks: who asks has one that would keep its job alive.
        self._context = Context()
        self.is_lost = False
        #: Writes so far.
        self.writes = 0

    def __repr__(self) -> str:
        return f"<RedisLine{' lost' if self.is_lost else ''} {len(self._asked)} asked>"

    def ask(self, *commands: bytes) -> asyncio.Future[Answer]:
        """Send *commands* with this turn of the loop; return the future of their replies."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        if self.is_lost:
            future.set_result(None)
            return future
        if not self._asked:
            self._oldest = self._loop.time()
        self._asked.append((future, len(commands), []))
        is_first = not self._unsent
        self._unsent += commands
        if is_first:
            self._loop.call_soon(self._write, context=self._context)
        return future

    def close(self) -> None:
        """End the connection; who still waits is answered with None."""
        if self._transport is not None:
            self._transport.abort()
        self._lose()

    def _write(self) -> None:
        if self.is_lost:
            return
        data, self._unsent = b"".join(self._unsent), []
        self.writes += 1
        self._transport.write(data)
        if self._timer is None and self._timeout:
            self._set_timer(self._timeout)

    def _look_at_clock(self) -> None:
        """Give the connection up if a reply is overdue."""
        self._timer = None
        if not self._asked or self._timeout is None:
            return
        left = self._oldest + self._timeout - self._loop.time()
        if left <= 0:
            self.close()
        else:
            self._set_timer(left)

    def _set_timer(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._look_at_clock, context=self._context)

    # Called by the loop.

    def connection_made(self, transport: Any) -> None:
        """The loop has the connection."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Redis has replied."""
        self._oldest = self._loop.time()
        try:
            replies = self._replies.feed(data)
        except (UnknownReplyError, ValueError):
            self.close()
            return
        for reply in replies:
            if not self._asked:
                self.close()  # a reply that nobody has asked for
                return
            future, count, answer = self._asked[0]
            answer.append(reply)
            if len(answer) == count:
                self._asked.popleft()
                if not future.done():
                    future.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._lose()

    def _lose(self) -> None:
        self.is_lost = True
        self._unsent.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._asked:
            future, _, _ = self._asked.popleft()
            if not future.done():
                future.set_result(None)


def take_connection(client: Any) -> Any:
    """Return a connection of redis-py's *client*, made and checked by it; this blocks."""
    pool = client.connection_pool
    try:
        return pool.get_connection()
    except TypeError:
        return pool.get_connection("SET")  # redis-py before 5.3 wants a name


async def open_line(connection: Any) -> RedisLine | None:
    """Return a line that uses redis-py's *connection*; None if that is no plain socket.

    The connection stays the caller's, but its socket is the line's, and is closed
    with it. After that the caller gives the connection back.
    """
    sock = getattr(connection, "_sock", None)
    if not isinstance(sock, socket.socket) or isinstance(sock, ssl.SSLSocket):
        return None
    loop = asyncio.get_running_loop()
    line = RedisLine(loop, connection.socket_timeout)
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        await loop.create_unix_connection(lambda: line, sock=sock)
    else:
        await loop.create_connection(lambda: line, sock=sock)
    return line
