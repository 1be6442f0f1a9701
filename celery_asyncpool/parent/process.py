"""One worker process as its parent sees it: start it, feed it, see it go."""

from __future__ import annotations

import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import billiard
from billiard import popen_fork

from ..core.lifecycle import Lifecycle
from ..core.protocol import Message
from ..handover import ChildEnd, ChildOptions
from ..pipe import Pipe
from .pollers import open_pollers

__all__ = ["Spawner", "WorkerProcess"]


#: Stands for an exit code that nobody knows.
EX_UNKNOWN = 255


class _Fork(popen_fork.Popen):
    """billiard's, which leaves its pipe open when the system cannot fork.

    The child lets go of what is the parent's first of all: the hooks that come
    next close copies of its connections, and AMQP's would shut them down for
    both: what the parent has just written there would be lost, such as a reply to
    the very command that has restarted the pool.
    """

    def _launch(self, process: Any) -> None:
        reader, writer = os.pipe()
        try:
            self.pid = os.fork()
        except OSError:
            os.close(reader)
            os.close(writer)
            raise
        if self.pid == 0:
            exitcode = 1
            try:
                os.close(reader)
                process.let_go()
                exitcode = process._bootstrap()
            finally:
                os._exit(exitcode)
        os.close(writer)
        self.sentinel = reader


class Spawner:
    """Starts worker processes.

    Arguments:
        method: ``"fork"`` or ``"spawn"``.
        target: the child's main function: ``target(app, end, options)``.
        app: the Celery app.
        options: what each child has to know.
        start_timeout: seconds that a process may take to come up.
        before: called before each start.
        let_go: called first of all in a forked child, with the descriptors that it
            must not keep.
    """

    def __init__(
        self,
        method: str,
        target: Callable[..., None],
        app: Any,
        options: ChildOptions,
        start_timeout: float,
        before: Callable[[], object] = lambda: None,
        let_go: Callable[[tuple[int, ...]], None] = lambda fds: None,
    ) -> None:
        self.method = method
        self.target = target
        self.app = app
        self.options = options
        self.start_timeout = start_timeout
        self._before = before
        self._let_go = let_go
        self._started = 0
        #: Event loops that the project had before there was a pool are its own to
        #: share with forks; those since are Celery's and the broker's.
        self._own_pollers = open_pollers()

    def spawn(self, now: float, close_fds: tuple[int, ...], index: int) -> WorkerProcess:
        """Start a process at *now* (monotonic seconds), with the number *index* from 0 on.

        *close_fds* are descriptors of ours that a forked child must not keep.
        Raises ``OSError`` when the system has no room for a process or pipe.
        """
        self._before()
        with _Ends() as ends:
            process = self._process(ends.child_end(), index)
            if self.method == "fork":
                pollers = open_pollers() - self._own_pollers
                process._Popen = _Fork
                process.let_go = partial(self._let_go, (*close_fds, *ends.kept, *pollers))
            process.start()
            # Nothing that can fail may come between the start and the return:
            # the process would run, and nobody would know of it.
            ends.keep()
        life = Lifecycle(process.pid, now=now, start_timeout=self.start_timeout)
        return WorkerProcess(process, Pipe(ends.ours), ends.report, ends.write_fd, life, index)

    def _process(self, end: ChildEnd, index: int) -> Any:
        self._started += 1
        context: Any = billiard.get_context(self.method)
        process = context.Process(
            target=self.target,
            args=(self.app, end, self.options),
            name=f"AsyncPoolWorker-{self._started}",
        )
        process.index = index  # one less than Celery's %i in the log file's name
        process.daemon = False  # bodies may start processes of their own
        return process


class _Ends:
    """The descriptors of a process that is about to start, all or none of them.

    On leaving the ``with`` block the child's ends are closed here, and ours too
    unless the process has started.
    """

    def __init__(self) -> None:
        self._keep = False
        self._fds: list[int] = []
        try:
            self.ours, self.theirs = socket.socketpair()
            self.report, self.report_end = os.pipe()
            self._fds += (self.report, self.report_end)
            #: The pipe's socket again: kombu's hub knows one direction per descriptor.
            self.write_fd = os.dup(self.ours.fileno())
            self._fds.append(self.write_fd)
        except OSError:
            self._close_all()
            raise
        for fd in (self.report, self.report_end):
            os.set_blocking(fd, False)

    @property
    def kept(self) -> tuple[int, int, int]:
        """Our own ends, which a forked child must not keep."""
        return self.ours.fileno(), self.report, self.write_fd

    def child_end(self) -> ChildEnd:
        """What the child is given."""
        return ChildEnd(self.theirs, self.report_end, os.getpid())

    def __enter__(self) -> _Ends:
        return self

    def keep(self) -> None:
        """The process has started: our ends are somebody's now."""
        self._keep = True

    def __exit__(self, *exc_info: object) -> None:
        if self._keep:
            self.theirs.close()
            os.close(self.report_end)
        else:
            self._close_all()

    def _close_all(self) -> None:
        for name in ("ours", "theirs"):
            sock = getattr(self, name, None)
            if sock is not None:
                sock.close()
        for fd in self._fds:
            os.close(fd)


class WorkerProcess:
    """A started process, its pipe, its state, and what it has said of itself."""

    def __init__(
        self,
        process: Any,
        pipe: Pipe,
        report_fd: int,
        write_fd: int,
        life: Lifecycle,
        index: int,
    ) -> None:
        self._process = process
        self.pid: int = process.pid
        #: Its number among those that run, from 0 on.
        self.index = index
        self.pipe = pipe
        self.life = life
        #: Whether anything more will be read from it.
        self.pipe_is_watched = True
        #: What was read from it and is still to be handled.
        self.inbox: deque[Message] = deque()
        #: Its resident memory in KiB, when it was up.
        self.fresh_memory: int | None = None
        #: What it last said of itself.
        self.status: dict[str, float] = {}
        #: Why we are killing it, if we are.
        self.doom: str | None = None
        #: The job that blocks its loop, as its watchdog says; 0: none of Celery's.
        self.blocker: int | None = None
        #: Where it was when it was killed for a body whose time was over.
        self.last_stack = ""
        #: Its stream was broken: what it had accepted is not known.
        self.is_garbled = False
        self._is_reaped_by_others = False
        self.report_fd = report_fd
        #: The pipe's socket again, for the hub to wait for room in it.
        self.write_fd = write_fd
        self.exit_fd = self._open_exit_fd()

    def __repr__(self) -> str:
        return f"<WorkerProcess pid={self.pid} {self.life.state.value}>"

    @property
    def fds(self) -> tuple[int, ...]:
        """All descriptors that the parent has of it."""
        fds = (self.pipe.fileno(), self.write_fd, self.report_fd, self.exit_fd)
        return tuple(fd for fd in (*fds, self._process.sentinel) if fd is not None and fd >= 0)

    def read_report(self) -> str:
        """Read what its watchdog and its stack dump have written; return the latter."""
        try:
            text = os.read(self.report_fd, 64 * 1024).decode(errors="replace")
        except BlockingIOError:
            return ""
        rest = []
        for line in text.splitlines(keepends=True):
            if line.startswith("blocked by job "):
                self.blocker = int(line.rpartition(" ")[2])
            elif line == "free\n":
                self.blocker = None
            else:
                rest.append(line)
        return "".join(rest)

    def ask_for_stack(self) -> None:
        """Make it write its stacks into the report, whatever it is doing."""
        if self.exitcode() is None:
            os.kill(self.pid, signal.SIGUSR1)

    def exitcode(self) -> int | None:
        """Its exit code (negative: the signal that killed it), None while it runs.

        :data:`EX_UNKNOWN` where somebody else has waited for it.
        """
        code: int | None = self._process.exitcode
        return EX_UNKNOWN if code is None and self._is_reaped_by_others else code

    def look_for_reaper(self) -> None:
        """The system says that it has exited; find out whether we may ever hear how.

        Code of the project's in the main process may reap whatever has ended, and
        where SIGCHLD is ignored, the system does.
        """
        if self._process.exitcode is not None:
            return
        try:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            self._is_reaped_by_others = True

    def kill(self) -> None:
        """Send SIGKILL; the process has not been reaped, so the pid is its own."""
        if self.exitcode() is None:
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Give all descriptors back; after its exit."""
        self.pipe.close()
        os.close(self.write_fd)
        os.close(self.report_fd)
        if self.exit_fd != self._process.sentinel:
            os.close(self.exit_fd)
        self._process.join()

    def _open_exit_fd(self) -> int:
        """A descriptor that is readable once the process is gone.

        Linux's pidfd, else billiard's sentinel: a pipe that descendants which
        were forked without exec keep open, so that its news may come late.
        """
        if hasattr(os, "pidfd_open"):
            try:
                return os.pidfd_open(self.pid)
            except OSError:
                pass  # an old kernel, or forbidden by a sandbox
        sentinel: int = self._process.sentinel
        return sentinel
