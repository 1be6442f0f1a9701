"""One non-blocking end of the socketpair between the worker and a process.

Both sides use it: the parent from Celery's hub, the child from its event loop.
It buffers what the kernel does not take yet, and counts the bytes that it did
take, so that somebody can wait until a certain message has left.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from .core.protocol import Framer, Message

__all__ = ["READ_SIZE", "Pipe"]

#: Bytes read at most in one turn, so that no process can keep the others waiting.
READ_SIZE = 256 * 1024


class Pipe:
    """Messages in and out of one end; never blocks.

    The socket is the pipe's own from now on.
    """

    __slots__ = ("_framer", "_is_flushing", "_outbox", "_sock", "eof", "sent", "written")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._framer = Framer()
        self._outbox = bytearray()
        self._is_flushing = False
        #: Bytes given to :meth:`write` so far, and those that the kernel has taken.
        self.written = 0
        self.sent = 0
        #: The other end is gone: nothing will be read or sent any more.
        self.eof = False

    def __repr__(self) -> str:
        state = " eof" if self.eof else ""
        return f"<Pipe {len(self._outbox)} bytes to send{state}>"

    def fileno(self) -> int:
        """The descriptor, for an event loop to watch."""
        return self._sock.fileno()

    def write(self, frame: bytes) -> None:
        """Add a frame to what :meth:`flush` sends."""
        self._outbox += frame
        self.written += len(frame)

    def flush(self) -> bool:
        """Send what the kernel takes; True when nothing is left to send.

        When the other end is gone, the rest is dropped. False, too, in a signal
        handler that has interrupted a flush: that one goes on afterwards, with all
        that was written meanwhile. (Between its ``send`` and its note of it, a
        second one would send the same bytes again.)
        """
        if self._is_flushing:
            return False
        self._is_flushing = True
        try:
            return self._flush()
        finally:
            self._is_flushing = False

    def _flush(self) -> bool:
        outbox = self._outbox
        while outbox and not self.eof:
            try:
                count = self._sock.send(outbox)
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                # Only :meth:`read` sets eof: what the other end wrote before it
                # went, an ACK perhaps, may still wait to be read.
                outbox.clear()
                break
            del outbox[:count]
            self.sent += count
        if self.eof:
            outbox.clear()
        return not outbox

    def read(self) -> list[Message]:
        """Return the messages that one read of at most :data:`READ_SIZE` completes.

        Sets :attr:`eof` at the end of the stream. Raises ``ProtocolError`` when
        the bytes are not ours.
        """
        try:
            data = self._sock.recv(READ_SIZE)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            data = b""
        if not data:
            self.eof = True
            return []
        return self._framer.feed(data)

    def read_to_end(self) -> Iterator[Message]:
        """Yield all messages that the kernel holds.

        For the pipe of a process that is gone: what it wrote before counts, and
        a descendant may keep its end open, so the end is where nothing is left.
        Raises ``ProtocolError``, as :meth:`read`, behind what made sense.
        """
        while not self.eof:
            before = self._framer.pending
            messages = self.read()
            if not messages and self._framer.pending == before:
                break
            yield from messages

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return len(self._outbox)

    def shut(self) -> None:
        """Let the other end read its end of file; the descriptor stays open."""
        self.eof = True
        self._outbox.clear()
        with contextlib.suppress(OSError):  # not connected: the other end is gone
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end; the other one reads its end of file."""
        self.eof = True
        self._outbox.clear()
        self._sock.close()
