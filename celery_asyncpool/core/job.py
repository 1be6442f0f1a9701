"""One task's life in the pool: queued, sent, accepted, and exactly one end.

    QUEUED ──assign──> SENT ──accept──> ACCEPTED ──ready──> READY
      ^                  │                  └──────lose───> LOST
      └────give back─────┘
    QUEUED, SENT ──discard──> DISCARDED
    QUEUED, SENT, ACCEPTED ──terminate──> TERMINATED
    ACCEPTED ──time out──> TIMED_OUT

Two rules: every change of a job's state happens in this file, and nothing here
calls Celery, writes to a pipe or looks at a clock. A job that has ended stays
as it ended: whatever comes later is ignored, and says so by returning False.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from .timelimits import Limits

__all__ = ["EDGES", "Callbacks", "Event", "Job", "State"]


class State(Enum):
    """Where a job stands; the values are the words used in logs."""

    QUEUED = "queued"
    SENT = "sent"
    ACCEPTED = "accepted"
    READY = "ready"
    LOST = "lost"
    DISCARDED = "discarded"
    TERMINATED = "terminated"
    TIMED_OUT = "timed out"


class Event(Enum):
    """What can happen to a job."""

    ASSIGN = "assign"
    GIVE_BACK = "give back"
    ACCEPT = "accept"
    FINISH = "ready"
    LOSE = "lose"
    DISCARD = "discard"
    TERMINATE = "terminate"
    TIME_OUT = "time out"


EDGES: dict[State, dict[Event, State]] = {
    State.QUEUED: {
        Event.ASSIGN: State.SENT,
        Event.DISCARD: State.DISCARDED,
        Event.TERMINATE: State.TERMINATED,
    },
    State.SENT: {
        Event.GIVE_BACK: State.QUEUED,
        Event.ACCEPT: State.ACCEPTED,
        Event.LOSE: State.LOST,
        Event.DISCARD: State.DISCARDED,
        Event.TERMINATE: State.TERMINATED,
    },
    State.ACCEPTED: {
        Event.FINISH: State.READY,
        Event.LOSE: State.LOST,
        Event.TERMINATE: State.TERMINATED,
        Event.TIME_OUT: State.TIMED_OUT,
    },
    State.READY: {},
    State.LOST: {},
    State.DISCARDED: {},
    State.TERMINATED: {},
    State.TIMED_OUT: {},
}


class Callbacks(NamedTuple):
    """What Celery gave to ``apply_async``: who is told of which event."""

    accept: Callable[..., Any] | None = None
    success: Callable[..., Any] | None = None
    error: Callable[..., Any] | None = None
    #: Tells whether the task was revoked or has expired, and settles it if so.
    revoked: Callable[[], bool] | None = None
    #: Exceptions of a callback that go through to Celery instead of the log.
    propagate: tuple[type[BaseException], ...] = ()
    #: Asks the pool to end the job: ``terminate(job, signum)``.
    terminate: Callable[[Job, int], None] | None = None
    #: Told instead of *error* when the job has taken down its process too often.
    fail_for_good: Callable[[Any], Any] | None = None
    #: Whether the job may take down processes without end, as somebody else counts.
    may_crash: bool = False
    #: Told when a limit is over: ``timeout(soft=..., timeout=...)``.
    timeout: Callable[..., Any] | None = None


NO_CALLBACKS = Callbacks()
NO_LIMITS = Limits()


class Job:
    """The pool's record of one ``apply_async``, and what it returns.

    Celery's ``Request`` keeps only a weak reference to it, so the pool holds a
    strong one until the job's slot is free.
    """

    __slots__ = (
        "__weakref__",
        "callbacks",
        "hard_is_told",
        "id",
        "limits",
        "name",
        "payload",
        "pid",
        "quarantined",
        "state",
        "terminating",
        "turn",
        "uuid",
        "waits",
    )

    def __init__(
        self,
        id: int,
        payload: bytes,
        *,
        name: str = "?",
        uuid: str = "?",
        callbacks: Callbacks = NO_CALLBACKS,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self.id = id
        self.payload = payload
        self.name = name
        self.uuid = uuid
        self.callbacks = callbacks
        self.limits = limits
        self.state = State.QUEUED
        #: The process that has the job, while one has it.
        self.pid: int | None = None
        #: One more crash of its process would be the last that is allowed.
        self.quarantined = False
        #: The hub's turn in which it was submitted: whether it has had to wait.
        self.turn = 0
        #: It waits for its cap (see :mod:`.caps`), and has no slot of the worker.
        self.waits = False
        #: Whether somebody was told that its hard limit is over.
        self.hard_is_told = False
        #: The signal number with which somebody has asked for its end.
        self.terminating: int | None = None

    def __repr__(self) -> str:
        where = f" pid={self.pid}" if self.pid is not None else ""
        return f"<Job {self.id} {self.state.value}{where}>"

    def __str__(self) -> str:
        """Who this is in a log line: the task's name and id."""
        return f"{self.name}[{self.uuid}]"

    @property
    def has_ended(self) -> bool:
        """Whether the job's one end has come."""
        return not EDGES[self.state]

    @property
    def is_queued(self) -> bool:
        """Whether the job waits in the pool for a process."""
        return self.state is State.QUEUED

    def assign(self, pid: int) -> None:
        """The job goes to process *pid*; only a queued job can."""
        if self._move(Event.ASSIGN):
            self.pid = pid

    def give_back(self) -> bool:
        """Its process is gone and never accepted it: back to the queue.

        Returns False for a job that has ended meanwhile.
        """
        moved = self._move(Event.GIVE_BACK)
        if moved:
            self.pid = None
        return moved

    def accept(self) -> bool:
        """Its process has accepted it; True exactly once."""
        return self._move(Event.ACCEPT)

    def finish(self) -> bool:
        """Its result has arrived; True if this is the job's one end."""
        return self._move(Event.FINISH)

    def terminate(self, signum: int) -> None:
        """Celery's way to revoke a job that may be running: ask the pool to end it.

        The outcome is reported once, when it is known: the task may end by
        itself before it can be ended.
        """
        if self.callbacks.terminate is not None and not self.has_ended:
            self.callbacks.terminate(self, signum)

    def set_terminated(self) -> bool:
        """It was ended on request; True if this is its one end."""
        return self._move(Event.TERMINATE)

    def time_out(self) -> bool:
        """Its hard limit is over and the parent reports so; True if this is its one end."""
        return self._move(Event.TIME_OUT)

    def lose(self) -> bool:
        """Its process is gone after accepting it; True if this is its one end.

        Also for a job of which nobody can say any more whether it was accepted.
        """
        return self._move(Event.LOSE)

    def discard(self) -> bool:
        """It must not run here: somebody else will, or nobody should any more.

        True if this is its one end. Only for a job that no process has accepted.
        """
        return self._move(Event.DISCARD)

    def _move(self, event: Event) -> bool:
        edges = EDGES[self.state]
        if not edges:
            return False
        if event not in edges:
            raise AssertionError(f"{self!r} cannot {event.value}")
        self.state = edges[event]
        return True
