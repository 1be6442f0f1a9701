"""What a worker process is given by its parent; survives fork and spawn."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from billiard.reduction import DupFd

__all__ = ["PROCESS_VARIABLE", "ChildEnd", "ChildOptions"]

#: Environment variable by which the subprocesses that a worker process has
#: started are known after its death; its value is the process's pid.
PROCESS_VARIABLE = "CELERY_ASYNCPOOL_PROCESS"


@dataclass(frozen=True, slots=True)
class ChildOptions:
    """What the child has to know; see :class:`~celery_asyncpool.settings.Settings`."""

    #: The worker's node name.
    hostname: str
    threads: int
    loop: str
    cancel_grace: float
    block_warning: float
    lifespan_timeout: float
    redis_batching: bool
    gc_threshold: int
    #: Whether the child is a fresh interpreter, with a copy of the app.
    is_spawned: bool = False


class ChildEnd:
    """The child's ends: of the socketpair, and of the pipe for what blocks it.

    The second one is written by the child's watchdog, and by the interpreter's
    signal handler that dumps stacks, when the loop cannot write the first one.
    """

    def __init__(self, sock: socket.socket, report_fd: int, parent_pid: int) -> None:
        self.sock = sock
        self.report_fd = report_fd
        self.parent_pid = parent_pid

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (DupFd(self.sock.fileno()), DupFd(self.report_fd), self.parent_pid)


def _rebuild(sock: Any, report: Any, parent_pid: int) -> ChildEnd:
    return ChildEnd(socket.socket(fileno=sock.detach()), report.detach(), parent_pid)
