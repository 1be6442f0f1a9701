"""Redis' wire format, as far as storing results needs it; no I/O here.

Redis' commands are arrays of strings. Of its replies only those are known that
a few plain commands get, in both versions of the protocol.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Refusal", "Replies", "Reply", "UnknownReplyError", "encode"]

#: Lengths of bulk strings that are none.
NULLS = (b"$-1", b"_")


class Refusal(str):
    """A reply that is an error."""

    __slots__ = ()


#: What a command is answered with.
Reply = bytes | int | None | Refusal


class UnknownReplyError(Exception):
    """Redis has sent what none of our commands is answered with."""


def encode(args: Iterable[str | bytes | int]) -> bytes:
    """Return a command with *args* as Redis is sent it."""
    words = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


class Replies:
    """Takes what has been received, in pieces of any size, and returns replies."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> list[Reply]:
        """Return the replies that *data* completes, in their order.

        Raises :exc:`UnknownReplyError`, after which nothing that follows can be read.
        """
        data = self._data + data if self._data else data
        replies: list[Reply] = []
        start = 0
        while (found := _next(data, start)) is not None:
            reply, start = found
            replies.append(reply)
        self._data = data[start:]
        return replies


def _next(data: bytes, start: int) -> tuple[Reply, int] | None:
    """Return the reply at *start* and where it ends; None where more has to come."""
    end = data.find(b"\r\n", start)
    if end < 0:
        return None
    line, after = data[start:end], end + 2
    kind = line[:1]
    if line in NULLS:
        return None, after
    if kind == b"$":
        size = int(line[1:])
        if len(data) < after + size + 2:
            return None
        return data[after : after + size], after + size + 2
    if kind == b":":
        return int(line[1:]), after
    if kind == b"+":
        return line[1:], after
    if kind == b"-":
        return Refusal(line[1:].decode(errors="replace")), after
    raise UnknownReplyError(f"an unknown reply: {line[:100]!r}")
