"""One worker process as its parent sees it: start it, feed it, see it go."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import billiard

from ..core.job import Job
from ..core.lifecycle import Lifecycle
from ..core.protocol import Kind, encode
from ..handover import ChildEnd, ChildOptions
from ..pipe import Pipe

__all__ = ["Spawner", "WorkerProcess"]


class Spawner:
    """Starts worker processes.

    Arguments:
        method: ``"fork"`` or ``"spawn"``.
        target: the child's main function: ``target(app, end, options)``.
        app: the Celery app.
        options: what each child has to know.
        start_timeout: seconds that a process may take to come up.
    """

    def __init__(
        self,
        method: str,
        target: Callable[..., None],
        app: Any,
        options: ChildOptions,
        start_timeout: float,
    ) -> None:
        self.method = method
        self.target = target
        self.app = app
        self.options = options
        self.start_timeout = start_timeout
        self._started = 0

    def spawn(self, now: float, close_fds: tuple[int, ...]) -> WorkerProcess:
        """Start a process at *now* (monotonic seconds).

        *close_fds* are descriptors of ours that a forked child must not keep.
        Raises ``OSError`` when the system has no room for a process or pipe.
        """
        ours, theirs = socket.socketpair()
        report, report_end = os.pipe()
        for fd in (report, report_end):
            os.set_blocking(fd, False)
        try:
            options = self.options
            if self.method == "fork":
                options = replace(options, close_fds=(*close_fds, ours.fileno(), report))
            self._started += 1
            context: Any = billiard.get_context(self.method)
            process = context.Process(
                target=self.target,
                args=(self.app, ChildEnd(theirs, report_end), options),
                name=f"AsyncPoolWorker-{self._started}",
            )
            process.index = self._started - 1  # Celery's %i in the log file's name
            process.daemon = False  # bodies may start processes of their own
            process.start()
        except BaseException:
            ours.close()
            os.close(report)
            raise
        finally:
            theirs.close()
            os.close(report_end)
        life = Lifecycle(process.pid, now=now, start_timeout=self.start_timeout)
        return WorkerProcess(process, Pipe(ours), report, life)


class WorkerProcess:
    """A started process, its pipe, its state and the jobs that it has."""

    def __init__(self, process: Any, pipe: Pipe, report_fd: int, life: Lifecycle) -> None:
        self._process = process
        self.pid: int = process.pid
        self.pipe = pipe
        self.life = life
        #: Jobs sent to it that have not ended there.
        self.jobs: dict[int, Job] = {}
        #: Jobs that have ended there.
        self.done = 0
        #: What it last said of itself.
        self.status: dict[str, float] = {}
        #: Ids of the jobs whose bodies refuse to end.
        self.stuck: set[int] = set()
        #: Why we are killing it, if we are.
        self.doom: str | None = None
        #: The job that blocks its loop, as its watchdog says; 0: none of Celery's.
        self.blocker: int | None = None
        #: Ids of jobs whose time was over, which it has not ended; with its stack then.
        self.overdue: set[int] = set()
        self.last_stack = ""
        #: Its stream was broken: what it had accepted is not known.
        self.is_garbled = False
        self.report_fd = report_fd
        #: The pipe's socket again: kombu's hub knows one direction per descriptor.
        self.write_fd = os.dup(pipe.fileno())
        self.exit_fd = self._open_exit_fd()

    def __repr__(self) -> str:
        return f"<WorkerProcess pid={self.pid} {self.life.state.value}, {len(self.jobs)} jobs>"

    def send(self, job: Job) -> None:
        """Hand *job* over; it leaves with the next flush of the pipe."""
        self.jobs[job.id] = job
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
