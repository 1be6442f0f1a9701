"""Connections to Redis that are read when the event loop says so.

A channel has one *work* line, on which commands leave without waiting for the
replies to earlier ones, and one *bell* for each list that it consumes.

A bell waits for its list with BLMOVE from the list's end to the same end. Redis
answers as soon as the list has a message, and leaves it there: it is the only
command that waits for a list and takes nothing, so whatever becomes of the
answer, no message depends on it. It knows one list; hence one connection each.
Before Redis 6.2 it is BRPOPLPUSH, which moves the oldest message behind the
others, if there are any.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Bell", "Line", "Reply", "is_refusal"]

#: How a server says that it does not know, or does not permit, a command.
REFUSALS = (
    "unknown command",
    "unknown redis command",
    "unsupported command",
    "no permissions to run",
    "can't run this command",
    "can't run script",
    "not allowed to run",
    "keys in request don't hash to the same slot",
)

#: Seconds that a reply may take when somebody waits for it: at the end.
PATIENCE = 5.0


class Reply(NamedTuple):
    """A reply, or the error that is one, and what it is the reply to."""

    to: Any
    value: Any
    error: Any = None


class Line:
    """One connection, and what is expected on it.

    *pool* gives and takes connections as redis-py's pools do; *response_error* is
    what redis-py raises for a reply that is an error.
    """

    def __init__(self, pool: Any, response_error: type[Exception]) -> None:
        self.connection_pool = pool
        #: kombu's poller gets one from the pool.
        self.connection: Any = None
        self._response_error = response_error
        self._expected: deque[Any] = deque()
        self._oldest = 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether a reply is expected."""
        return bool(self._expected)

    @property
    def sock(self) -> Any:
        """The connection's socket; None while it is not connected."""
        return getattr(self.connection, "_sock", None)

    def waited(self, clock: Callable[[], float] = time.monotonic) -> float:
        """Return the seconds since the oldest reply is expected."""
        return clock() - self._oldest if self._expected else 0.0

    def send(self, command: tuple[Any, ...], to: Any) -> None:
        """Send *command*; its reply comes with *to*."""
        if not self._expected:
            self._oldest = time.monotonic()
        self._expected.append(to)
        # A health check would read a reply: only where none is expected.
        self.connection.send_command(*command, check_health=len(self._expected) == 1)

    def has_reply(self, timeout: float = 0) -> bool:
        """Whether a reply, or the end of the connection, can be read."""
        return bool(self.connection.can_read(timeout=timeout))

    def receive(self) -> Reply:
        """Read the next reply. What is raised ends the connection."""
        try:
            value, error = self.connection.read_response(), None
        except self._response_error as exc:
            value, error = None, exc
        self._oldest = time.monotonic()
        return Reply(self._expected.popleft(), value, error)

    def wait(self) -> Reply:
        """Wait for the next reply; raises ``TimeoutError`` where it does not come."""
        if not self.has_reply(PATIENCE):
            raise TimeoutError(f"no reply from Redis within {PATIENCE:.0f}s")
        return self.receive()

    def close(self) -> list[Any]:
        """End the connection; return what no reply has come to."""
        connection, self.connection = self.connection, None
        if connection is not None:
            try:
                connection.disconnect()
            finally:
                self.connection_pool.release(connection)
        expected = list(self._expected)
        self._expected.clear()
        return expected


class Bell(Line):
    """Rings when its list has a message."""

    def __init__(self, pool: Any, response_error: type[Exception], key: str) -> None:
        super().__init__(pool, response_error)
        self.key = key

    def arm(self, timeout: float, has_blmove: bool) -> None:
        """Wait for a message, for at most *timeout* seconds; 0: for ever."""
        key = self.key
        if has_blmove:
            command: tuple[Any, ...] = ("BLMOVE", key, key, "RIGHT", "RIGHT", timeout)
        else:
            command = ("BRPOPLPUSH", key, key, timeout)
        self.send(command, has_blmove)


def is_refusal(error: Exception) -> bool:
    """Whether *error* says that the server will never do it."""
    text = str(error).lower()
    return any(words in text for words in REFUSALS)
