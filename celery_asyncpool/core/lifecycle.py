"""One worker process's life, and what its exit means.

    STARTING ──up──> UP ──drain──> DRAINING
        └─────────────┴──stop────────┴──────> STOPPING ──> EXITED

Monotone: there is no way back, and a replacement is a new object. Two rules:
every change of state happens here, and nothing here forks, reads a pipe or
looks at a clock.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

__all__ = ["EDGES", "EX_BOOT", "Exit", "Lifecycle", "State", "explain_exit"]

#: Exit code of a worker process that could not start.
EX_BOOT = 0x9D

SIGKILL = 9


class State(Enum):
    """Where a process stands; the values are the words used in logs."""

    STARTING = "starting"
    UP = "up"
    DRAINING = "draining"
    STOPPING = "stopping"
    EXITED = "exited"


EDGES: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.UP, State.STOPPING, State.EXITED}),
    State.UP: frozenset({State.DRAINING, State.STOPPING, State.EXITED}),
    State.DRAINING: frozenset({State.STOPPING, State.EXITED}),
    State.STOPPING: frozenset({State.EXITED}),
    State.EXITED: frozenset(),
}


class Lifecycle:
    """The state of one process and until when it may stay in it.

    Arguments:
        pid: the process.
        now: monotonic seconds at its start.
        start_timeout: seconds it may take to come up.
    """

    __slots__ = ("deadline", "pid", "retiring", "state")

    def __init__(self, pid: int, *, now: float, start_timeout: float) -> None:
        self.pid = pid
        self.state = State.STARTING
        #: Monotonic seconds after which it is overdue; None: no limit.
        self.deadline: float | None = now + start_timeout
        #: Why it is to be replaced, once it is.
        self.retiring: str | None = None

    def __repr__(self) -> str:
        return f"<Lifecycle pid={self.pid} {self.state.value}>"

    @property
    def takes_jobs(self) -> bool:
        """Whether new jobs may go to this process."""
        return self.state is State.UP

    @property
    def serves(self) -> bool:
        """Whether it counts as capacity: up, or soon to be."""
        return self.state in (State.STARTING, State.UP)

    def is_overdue(self, now: float) -> bool:
        """Whether it has stayed in its state for too long."""
        return self.deadline is not None and now >= self.deadline

    def on_up(self) -> bool:
        """It says that it is up; True if that is news.

        A process that is being stopped may still have WORKER_UP in its pipe.
        """
        if self.state is not State.STARTING:
            return False
        self._move(State.UP, deadline=None)
        return True

    def retire(self, reason: str) -> bool:
        """Replace it, for *reason*: it takes jobs until another one is up; True if new."""
        if self.retiring is not None or not self.serves:
            return False
        self.retiring = reason
        return True

    def drain(self, *, deadline: float | None = None) -> None:
        """Give it no more jobs; it exits when those that it has are done.

        *deadline*: monotonic seconds after which it is overdue; None: no limit.
        """
        # Its pipe may have ended just before: then it is as overdue as it was.
        self._move(State.DRAINING, deadline=deadline if self.deadline is None else self.deadline)

    def stop(self, *, now: float, timeout: float) -> None:
        """Its pipe is closed or it was killed: it must be gone in *timeout* s."""
        self._move(State.STOPPING, deadline=now + timeout)

    def must_go(self, *, now: float, timeout: float) -> None:
        """While it drains: it is overdue in *timeout* s, or before if it was so already."""
        if self.state is State.DRAINING:
            due = now + timeout
            self.deadline = due if self.deadline is None else min(self.deadline, due)

    def on_eof(self, *, now: float, timeout: float) -> None:
        """Its pipe has ended: it exits by itself, or is overdue in *timeout* s."""
        if self.deadline is None and self.state is not State.EXITED:
            self.deadline = now + timeout

    def on_exit(self, exitcode: int) -> Exit:
        """It is gone; return what *exitcode* means after the life it had."""
        before = self.state
        self._move(State.EXITED, deadline=None)
        return explain_exit(before, exitcode)

    def _move(self, new: State, *, deadline: float | None) -> None:
        if new not in EDGES[self.state]:
            raise AssertionError(f"{self!r} cannot become {new.value}")
        self.state = new
        self.deadline = deadline


class Exit(NamedTuple):
    """Why a process is gone."""

    #: It was asked to go, and went.
    expected: bool
    #: It never came up.
    at_start: bool
    #: Perhaps the kernel's out-of-memory killer.
    perhaps_oom: bool


def explain_exit(before: State, exitcode: int) -> Exit:
    """Classify an exit by the *before* state and the code (negative: a signal)."""
    expected = before is State.STOPPING or (before is State.DRAINING and exitcode == 0)
    return Exit(
        expected=expected,
        at_start=before is State.STARTING,
        perhaps_oom=exitcode == -SIGKILL and not expected,
    )
