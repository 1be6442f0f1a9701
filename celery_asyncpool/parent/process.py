"""One worker process as its parent sees it: start it, feed it, see it go."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import billiard
from billiard import popen_fork

from ..core.job import Job
from ..core.lifecycle import Lifecycle
from ..core.protocol import Kind, encode
from ..handover import ChildEnd, ChildOptions
from ..pipe import Pipe
from .pollers import open_pollers

__all__ = ["Spawner", "WorkerProcess"]


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
            process = self._process(ChildEnd(ends.theirs, ends.report_end), index)
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
    """A started process, its pipe, its state and the jobs that it has."""

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
        #: Jobs sent to it that have not ended there.
        self.jobs: dict[int, Job] = {}
        #: Jobs that were sent to it, and that have ended there.
        self.sent = 0
        self.done = 0
        #: Its resident memory in KiB, when it was up and when somebody last looked.
        self.fresh_memory: int | None = None
        self.memory: int | None = None
        #: What it last said of itself.
        self.status: dict[str, float] = {}
        #: Ids of the jobs whose bodies refuse to end.
        self.stuck: set[int] = set()
        #: Why we are killing it, if we are.
        self.doom: str | None = None
        #: The job that blocks its loop, as its watchdog says; 0: none of Celery's.
        self.blocker: int | None = None
        #: Jobs whose time is over and which it has not ended, and until when it may
        #: be only late (monotonic seconds); with its stack when it was killed for that.
        self.overdue: dict[int, float] = {}
        self.last_stack = ""
        #: Its messages are being handled right now.
        self.is_read = False
        #: Its stream was broken: what it had accepted is not known.
        self.is_garbled = False
        self.report_fd = report_fd
        #: The pipe's socket again, for the hub to wait for room in it.
        self.write_fd = write_fd
        self.exit_fd = self._open_exit_fd()

    def __repr__(self) -> str:
        return f"<WorkerProcess pid={self.pid} {self.life.state.value}, {len(self.jobs)} jobs>"

    @property
    def fds(self) -> tuple[int, ...]:
        """All descriptors that the parent has of it."""
        fds = (self.pipe.fileno(), self.write_fd, self.report_fd, self.exit_fd)
        return tuple(fd for fd in (*fds, self._process.sentinel) if fd is not None and fd >= 0)

    def send(self, job: Job) -> None:
        """Hand *job* over; it leaves with the next flush of the pipe."""
        self.jobs[job.id] = job
        self.sent += 1
        self.pipe.write(encode(Kind.TASK, job.id, job.payload))

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
        """Its exit code (negative: the signal that killed it), None while it runs."""
        code: int | None = self._process.exitcode
        return code

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
