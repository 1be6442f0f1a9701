"""Bytes in and out: the hub, what it watches, and the pipes of the processes.

Celery runs a kombu hub where the broker's transport has one, and resets it when it
loses the broker; :meth:`Wires.attach` then finds everything to watch again. What is
read goes into the inbox of its process, whoever may interrupt; what is written waits
for the next :meth:`Wires.flush`.
"""

from __future__ import annotations

from typing import Any, Protocol

from celery.utils.log import get_logger

from ..core import protocol
from ..core.protocol import Kind
from .process import WorkerProcess

__all__ = ["Events", "Wires"]

logger = get_logger(__name__)

#: Seconds between two looks at all processes.
MAINTENANCE_INTERVAL = 1.0


class Events(Protocol):
    """Whom the hub's events are for; none of these may raise an ``OSError``.

    Celery takes one that leaves its hub for a lost broker.
    """

    def on_tick(self) -> None:
        """Once in each turn of the hub, before it polls."""

    def maintain(self) -> None:
        """Once in a second."""

    def on_readable(self, process: WorkerProcess) -> None:
        """There is something to read from *process*."""

    def on_writable(self, process: WorkerProcess) -> None:
        """The pipe of *process*, which was full, has room."""

    def on_exit(self, process: WorkerProcess) -> None:
        """The system says that *process* has exited."""


class Wires:
    """The descriptors of all processes, in the hub that there is now."""

    def __init__(self) -> None:
        self._hub: Any = None
        self._timer: Any = None
        self._events: Events | None = None
        #: The processes whose descriptors are watched wherever there is a hub.
        self._watched: dict[int, WorkerProcess] = {}
        #: Those with frames that were not sent yet.
        self._unflushed: dict[int, WorkerProcess] = {}

    @property
    def hub(self) -> Any:
        """The hub, None while there is none."""
        return self._hub

    def attach(self, hub: Any, events: Events) -> None:
        """Live in *hub* from now on; harmless when attached to it before."""
        self.detach()
        self._hub, self._events = hub, events
        hub.on_tick.add(events.on_tick)
        self._timer = hub.call_repeatedly(MAINTENANCE_INTERVAL, events.maintain)
        for process in self._watched.values():
            self._add(process)

    def detach(self) -> None:
        """Leave the hub as it was; harmless without one."""
        if self._hub is None or self._events is None:
            return
        for process in self._watched.values():
            self._hub.remove(process.exit_fd)
            self._remove_pipe(process)
        self._hub.on_tick.discard(self._events.on_tick)
        self._timer.cancel()
        self._hub = self._events = None

    def watch(self, process: WorkerProcess) -> None:
        """Hear of *process* from now on."""
        self._watched[process.pid] = process
        self._add(process)

    def unwatch(self, process: WorkerProcess) -> None:
        """Hear of it no more."""
        self._watched.pop(process.pid, None)
        self._unflushed.pop(process.pid, None)
        if self._hub is not None:
            self._hub.remove(process.exit_fd)
        self._remove_pipe(process)

    def unwatch_pipe(self, process: WorkerProcess) -> None:
        """Read nothing more from it; its exit is still to come."""
        process.pipe_is_watched = False
        self._remove_pipe(process)

    def _add(self, process: WorkerProcess) -> None:
        if self._hub is None or self._events is None:
            return
        self._hub.add_reader(process.exit_fd, self._events.on_exit, process)
        if process.pipe_is_watched:
            self._hub.add_reader(process.pipe.fileno(), self._events.on_readable, process)
            if process.pipe.unsent:
                self._hub.add_writer(process.write_fd, self._events.on_writable, process)

    def _remove_pipe(self, process: WorkerProcess) -> None:
        if self._hub is not None:
            self._hub.remove(process.pipe.fileno())
            self._hub.remove(process.write_fd)

    # Reading.

    def read(self, process: WorkerProcess) -> bool:
        """Read one buffer into the inbox of *process*; False if no message was in it.

        Raises ``ProtocolError`` when the bytes are not ours.
        """
        if process.pipe.eof or not process.pipe_is_watched:
            return False
        messages = process.pipe.read()
        process.inbox.extend(messages)
        return bool(messages)

    def read_to_end(self, process: WorkerProcess) -> None:
        """Read all that a process which is gone has written."""
        if not process.pipe.eof and not process.is_garbled:
            process.inbox.extend(process.pipe.read_to_end())  # as far as they make sense

    # Writing.

    def write(
        self, process: WorkerProcess, kind: Kind, job_id: int = 0, data: bytes = b""
    ) -> None:
        """Send a frame, with the next :meth:`flush`."""
        process.pipe.write(protocol.encode(kind, job_id, data))
        self._unflushed[process.pid] = process

    def flush(self) -> list[tuple[WorkerProcess, bool]]:
        """Send what is to be sent; return to whom, and whether all of it has left."""
        flushed = []
        while self._unflushed:
            _, process = self._unflushed.popitem()
            flushed.append((process, self.flush_one(process)))
        return flushed

    def flush_one(self, process: WorkerProcess) -> bool:
        """Send what the kernel takes; what it does not leaves when there is room."""
        done = process.pipe.flush()
        if self._hub is None or self._events is None:
            return done
        is_watched = process.write_fd in self._hub.writers
        if done and is_watched:
            self._hub.remove(process.write_fd)
        elif not done and not is_watched:
            # Its socket is full: it is busy or stopped. The others go on.
            self._hub.add_writer(process.write_fd, self._events.on_writable, process)
        return done
