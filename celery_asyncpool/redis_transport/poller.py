"""kombu's poller, which reads our lines too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kombu.transport.redis

from .lines import Line

__all__ = ["Poller"]

#: Its stubs know little of it.
kombu_redis: Any = kombu.transport.redis


class Poller(kombu_redis.MultiChannelPoller):  # type: ignore[misc]
    """kombu's, which knows our lines too: a line is its own kind of connection."""

    #: Celery's hub, while it reads for us.
    loop: Any = None

    #: kombu's: something is going on, and these are the cancellations that wait for its end.
    _in_protected_read: bool
    after_read: set[Callable[[], Any]]

    def on_poll_start(self) -> None:
        """Before each poll."""
        self._protected(self._start_poll)

    def _start_poll(self) -> None:
        self._before_poll()
        super().on_poll_start()

    def _protected(self, function: Callable[..., None], *args: Any) -> None:
        """Call *function*, which no ``basic_cancel`` may interrupt: they come after it.

        Celery cancels its consumers in a signal handler. What it interrupts would go
        on with queues and connections that are not there any more. kombu knows this of
        :meth:`get`, and not of a hub.
        """
        if self._in_protected_read:
            function(*args)
            return
        self._in_protected_read = True
        try:
            function(*args)
        finally:
            self._in_protected_read = False
            while self.after_read:
                self.after_read.pop()()

    def get(self, callback: Any, timeout: float | None = None) -> None:
        """Without a hub: bring one event, which is at most one message."""
        self._before_poll()
        for channel in tuple(self._channels):
            if channel.deliver_next():
                return
            wait = channel.longest_wait()
            if wait is not None:
                timeout = wait if timeout is None else min(timeout, wait)
        super().get(callback, timeout)

    def _before_poll(self) -> None:
        for channel in tuple(self._channels):
            channel.before_poll()

    def _register_BRPOP(self, channel: Any) -> None:
        """*channel* has queues, and room for a message."""
        if channel.is_batching:
            channel.feed()
        if not channel.is_batching:  # it may just have found out that it cannot
            super()._register_BRPOP(channel)

    def on_readable(self, fileno: int) -> None:
        """One of our connections has something to read.

        A bell's answer is read whether there is room or not: no message is in it.
        """
        self._protected(self._read, fileno)

    def _read(self, fileno: int) -> None:
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if isinstance(kind, Line):
            channel.on_line(kind)
        elif kind is not None:
            super().on_readable(fileno)

    def maybe_check_brpop_health(self) -> None:
        """Called by kombu (from 5.7 on) to find connections that are half open."""
        super().maybe_check_brpop_health()
        for channel in tuple(self._channels):
            channel.check_lines()

    def watch(self, channel: Any, line: Line) -> None:
        """Connect *line* where it is not, and read it when it is readable."""
        if not self._client_registered(channel, line, line):
            self._register(channel, line, line)

    def unwatch(self, channel: Any, line: Line) -> None:
        """Read it no more; to be called before its socket is closed."""
        self._chan_to_sock.pop((channel, line, line), None)
        fds = {fd for fd, (_, kind) in self._fd_to_chan.items() if kind is line}
        if line.sock is not None:
            fds.add(line.sock.fileno())  # kombu's poller may be closed already, and know nothing
        for fd in fds:
            self._fd_to_chan.pop(fd, None)
            self._unregister_fd(fd)

    def _unregister_fd(self, fd: int) -> None:
        if self.loop is not None:
            self.loop.remove_reader(fd)
            return
        try:
            self.poller.unregister(fd)
        except (KeyError, OSError, ValueError):
            return  # redis-py has closed it when it found it broken
