"""A TCP proxy that makes a server seem far away: ``python -m benchmarks.delay PORT SECONDS``.

A delay line: each chunk leaves SECONDS after it came, in order, however many
are under way, so that latency grows and bandwidth does not shrink. It prints
its own port and runs until standard input ends.

Its loop waits in ``select``: the timeouts of ``epoll`` are whole milliseconds,
which is too coarse for a delay of two.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import sys
from collections import deque

__all__ = ["DelayLine", "new_loop", "serve"]

#: Bytes under way in one direction above which the sender has to wait.
WINDOW = 16 * 2**20


class DelayLine(asyncio.Protocol):
    """One socket: what it reads leaves through *other*, later."""

    transport: asyncio.Transport | None = None
    other: DelayLine

    def __init__(self, loop: asyncio.AbstractEventLoop, delay: float) -> None:
        self._loop = loop
        self._delay = delay
        #: What is under way, with the time at which it arrives; None is the end.
        self._line: deque[tuple[float, bytes | None]] = deque()
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_crowded = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._size += len(data)
        self._put(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._put(None)

    def pause_writing(self) -> None:
        self.other._is_crowded = True
        self.other._decide()

    def resume_writing(self) -> None:
        self.other._is_crowded = False
        self.other._decide()

    def _put(self, data: bytes | None) -> None:
        due = self._loop.time() + self._delay
        self._line.append((due, data))
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._deliver)
        self._decide()

    def _deliver(self) -> None:
        self._timer = None
        now = self._loop.time()
        if self.other.transport is None:  # not connected yet
            self._timer = self._loop.call_later(self._delay, self._deliver)
            return
        while self._line and self._line[0][0] <= now:
            _, data = self._line.popleft()
            if data is None:
                self.other.transport.close()
            else:
                self._size -= len(data)
                self.other.transport.write(data)
        if self._line:
            self._timer = self._loop.call_at(self._line[0][0], self._deliver)
        self._decide()

    def _decide(self) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        if self._is_crowded or self._size > WINDOW:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a loop whose timers are good to some hundredths of a millisecond."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


async def _join(client: socket.socket, host: str, port: int, delay: float) -> None:
    loop = asyncio.get_running_loop()
    near, far = DelayLine(loop, delay), DelayLine(loop, delay)
    near.other, far.other = far, near
    server = socket.socket()
    server.setblocking(False)
    await loop.sock_connect(server, (host, port))
    await loop.connect_accepted_socket(lambda: near, client)
    await loop.connect_accepted_socket(lambda: far, server)


async def serve(port: int, delay: float, host: str = "127.0.0.1") -> None:
    """Delay all connections to *port* until standard input ends; print the own port."""
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    accepting = loop.create_task(_accept(listener, host, port, delay))
    await asyncio.to_thread(sys.stdin.read)
    accepting.cancel()


async def _accept(listener: socket.socket, host: str, port: int, delay: float) -> None:
    loop = asyncio.get_running_loop()
    joining = set()
    while True:
        client, _ = await loop.sock_accept(listener)
        task = loop.create_task(_join(client, host, port, delay))
        joining.add(task)
        task.add_done_callback(joining.discard)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve(int(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:]))
