"""A TCP proxy on a free port of 127.0.0.1 that can fail as a network does."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self
from urllib.parse import urlsplit


class Proxy:
    """Stands before the server on *port* of 127.0.0.1; use it as a context manager.

    All that it does is done in a thread of its own; each call returns when it
    is so. Its port stays its own until the end, also while it refuses.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = _bind(0)
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._accepting: asyncio.Task[None] | None = None
        self._sides: set[_Side] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._frozen = False

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen)
        return self

    def __exit__(self, *args: object) -> None:
        self._call(self._refuse)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._listener.close()

    @property
    def connections(self) -> int:
        """How many connections there are from clients."""
        return len(self._sides) // 2

    def before(self, url: str) -> str:
        """*url* of the server, with the proxy's port."""
        parts = urlsplit(url)
        credentials, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{credentials}{at}127.0.0.1:{self.port}").geturl()

    def cut(self) -> None:
        """Close all connections and refuse new ones."""
        self._call(self._refuse)

    def heal(self) -> None:
        """Let connections through again."""
        self._call(self._listen)

    def freeze(self) -> None:
        """Take connections, but pass no byte on: a network that has gone silent."""
        self._call(self._freeze)

    def thaw(self) -> None:
        """Pass on what was held back, and what comes."""
        self._call(self._thaw)

    def _call(self, function: Callable[[], None]) -> None:
        async def call() -> None:
            function()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(timeout=10)

    # In the proxy's thread.

    def _listen(self) -> None:
        if self._accepting is None:
            self._listener.listen(1024)
            self._accepting = self._start(self._accept())

    def _refuse(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            self._accepting = None
            # A socket cannot stop to listen. One that is bound and does not
            # listen refuses connections, and keeps the port from others.
            self._listener.close()
            self._listener = _bind(self.port)
        for task in self._tasks:
            task.cancel()
        for side in list(self._sides):
            side.transport.abort()

    def _freeze(self) -> None:
        self._frozen = True
        for side in self._sides:
            side.hold()

    def _thaw(self) -> None:
        self._frozen = False
        for side in self._sides:
            side.go_on()

    def _start(self, coroutine: asyncio._CoroutineLike[None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            self._start(self._join(client))

    async def _join(self, client: socket.socket) -> None:
        """Connect *client* with the server."""
        near, far = _Side(self._sides), _Side(self._sides)
        near.other, far.other = far, near
        try:
            await self._loop.create_connection(lambda: far, "127.0.0.1", self._server_port)
        except OSError:
            client.close()  # the server itself is away
            return
        except asyncio.CancelledError:
            client.close()
            if far in self._sides:
                far.transport.abort()
            raise
        await self._loop.connect_accepted_socket(lambda: near, client)
        if far not in self._sides:
            near.transport.abort()  # the server has hung up meanwhile
        elif self._frozen:
            near.hold()
            far.hold()


class _Side(asyncio.Protocol):
    """One of the two sockets of a connection; gives to the other what it reads."""

    transport: asyncio.Transport
    other: _Side

    def __init__(self, sides: set[_Side]) -> None:
        self._sides = sides
        self._early: list[bytes] = []
        self._held = False
        self._crowded = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._sides.add(self)
        if self._early:
            transport.writelines(self._early)

    def data_received(self, data: bytes) -> None:
        if self.other in self._sides:
            self.other.transport.write(data)
        else:
            self.other._early.append(data)  # a server that speaks first

    def eof_received(self) -> bool:
        if self.other in self._sides:
            with contextlib.suppress(OSError):
                self.other.transport.write_eof()
        return True  # the other direction goes on

    def connection_lost(self, exc: Exception | None) -> None:
        self._sides.discard(self)
        if self.other in self._sides:
            self.other.transport.close()

    def hold(self) -> None:
        """Read no more."""
        self._held = True
        self._decide()

    def go_on(self) -> None:
        """Read again."""
        self._held = False
        self._decide()

    def pause_writing(self) -> None:
        self.other._crowded = True
        self.other._decide()

    def resume_writing(self) -> None:
        self.other._crowded = False
        self.other._decide()

    def _decide(self) -> None:
        if self not in self._sides or self.transport.is_closing():
            return
        if self._held or self._crowded:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()


def _bind(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setblocking(False)
    listener.bind(("127.0.0.1", port))
    return listener
