"""One body's time: what is due at *now*, and how it ended.

    WAITING ──start──> RUNNING ──hard limit, terminate──> CANCELLED ──grace──> DETACHED
       │                  │                                   │                   │
       └──terminate──> (never starts)       └──── end ────────┴──── end ──────────┴──> ENDED

The child keeps one for each job; it cancels the body when the clock says so.
Limits count from the body's start, and stop with its end: what the tracer does
before and after is not the body's time. Two rules: every change happens here,
and nothing here cancels, raises into a body or looks at a clock.
"""

from __future__ import annotations

from enum import Enum

from .numbers import as_number

__all__ = [
    "Action",
    "BodyClock",
    "BodyState",
    "Limits",
    "Verdict",
    "check_limits",
    "is_no_limit",
    "sensible_limit",
]


class Limits:
    """The soft and hard time limit of one job, in seconds; None: no limit."""

    __slots__ = ("hard", "soft")

    def __init__(self, soft: float | None = None, hard: float | None = None) -> None:
        self.soft = soft
        self.hard = hard

    def __repr__(self) -> str:
        return f"<Limits soft={self.soft} hard={self.hard}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Limits) and (self.soft, self.hard) == (other.soft, other.hard)

    __hash__ = None  # type: ignore[assignment]


def check_limits(soft: object, hard: object, whose: str) -> Limits:
    """Return the checked limits; None and 0 mean no limit, as everywhere in Celery.

    Raises ``ValueError`` with a sentence that names *whose* limits they are for
    limits that are no numbers, negative, or a soft one that the hard one makes
    pointless.
    """
    checked = [
        _check("soft_time_limit", soft, whose),
        _check("time_limit", hard, whose),
    ]
    if checked[0] is not None and checked[1] is not None and checked[0] >= checked[1]:
        raise ValueError(
            f"soft_time_limit of {whose} must be less than its time_limit, "
            f"got {soft!r} and {hard!r}"
        )
    return Limits(*checked)


def sensible_limit(value: object) -> float | None:
    """Return *value* if it can be a limit in seconds, else None."""
    number = as_number(value)
    return number if number is not None and number > 0 else None


def is_no_limit(value: object) -> bool:
    """Whether *value* says that there is no limit: None, or what is equal to 0."""
    return value is None or value == 0 or as_number(value) == 0


def _check(name: str, value: object, whose: str) -> float | None:
    if is_no_limit(value):
        return None
    limit = sensible_limit(value)
    if limit is None:
        raise ValueError(f"{name} of {whose} must be a number of seconds above 0, got {value!r}")
    return limit


class BodyState(Enum):
    """Where a body stands."""

    WAITING = "waiting"
    RUNNING = "running"
    CANCELLED = "cancelled"
    DETACHED = "detached"
    ENDED = "ended"


class Verdict(Enum):
    """What the pool, not the body, has decided about the job's outcome."""

    NONE = "none"
    HARD_LIMIT = "hard time limit"
    TERMINATED = "terminated"


class Action(Enum):
    """What has to be done to the body now."""

    SOFT_LIMIT = "soft limit"
    HARD_LIMIT = "hard limit"
    DETACH = "detach"


class BodyClock:
    """The time of one body.

    Arguments:
        limits: its soft and hard limit.
        grace: seconds that a cancelled body has to end.
    """

    __slots__ = (
        "_hard_at",
        "_soft_at",
        "grace",
        "limits",
        "refuses_at",
        "started_at",
        "state",
        "verdict",
    )

    def __init__(self, limits: Limits, grace: float) -> None:
        self.limits = limits
        self.grace = grace
        self.state = BodyState.WAITING
        self.verdict = Verdict.NONE
        #: When the body has started; None: it has not.
        self.started_at: float | None = None
        self._soft_at: float | None = None
        self._hard_at: float | None = None
        #: When a cancelled body counts as one that refuses to end.
        self.refuses_at: float | None = None

    def __repr__(self) -> str:
        return f"<BodyClock {self.state.value}, verdict: {self.verdict.value}>"

    def start(self, now: float) -> bool:
        """The body starts; False when it must not, since its job was terminated."""
        if self.state is not BodyState.WAITING:
            raise AssertionError(f"{self!r} cannot start")
        if self.verdict is not Verdict.NONE:
            return False
        self.state = BodyState.RUNNING
        self.started_at = now
        self._soft_at = None if self.limits.soft is None else now + self.limits.soft
        self._hard_at = None if self.limits.hard is None else now + self.limits.hard
        return True

    def limit(self, now: float, seconds: float) -> None:
        """From *now*, or its start, on a body has so many *seconds*, if it had more before."""
        if self.state is BodyState.WAITING:
            hard = self.limits.hard
            self.limits = Limits(self.limits.soft, seconds if hard is None else min(hard, seconds))
        elif self.state is BodyState.RUNNING:
            due = now + seconds
            self._hard_at = due if self._hard_at is None else min(self._hard_at, due)

    def next_due(self) -> float | None:
        """When :meth:`poll` has something to say; None: never, as things stand."""
        if self.state is BodyState.RUNNING:
            times = [when for when in (self._soft_at, self._hard_at) if when is not None]
            return min(times, default=None)
        if self.state is BodyState.CANCELLED:
            return self.refuses_at
        return None

    def poll(self, now: float) -> Action | None:
        """Say what is due at *now*, once; the hard limit goes before the soft one."""
        if self.state is BodyState.RUNNING:
            if self._hard_at is not None and now >= self._hard_at:
                self._cancel(Verdict.HARD_LIMIT, now)
                return Action.HARD_LIMIT
            if self._soft_at is not None and now >= self._soft_at:
                self._soft_at = None
                return Action.SOFT_LIMIT
        elif self.state is BodyState.CANCELLED:
            if self.refuses_at is not None and now >= self.refuses_at:
                self.state = BodyState.DETACHED
                return Action.DETACH
        return None

    def terminate(self, now: float) -> bool:
        """The job is to be ended; True if its body or its waiting has to be cancelled.

        Too late, and without effect, when the body has ended or is cancelled.
        """
        if self.state is BodyState.WAITING and self.verdict is Verdict.NONE:
            self.verdict = Verdict.TERMINATED
            return True
        if self.state is BodyState.RUNNING:
            self._cancel(Verdict.TERMINATED, now)
            return True
        return False

    def end(self) -> None:
        """The body has ended, however; harmless when it had before.

        A body that was given up (DETACHED) stays so: its outcome is reported by
        somebody else.
        """
        if self.state is not BodyState.DETACHED:
            self.state = BodyState.ENDED

    @property
    def is_detached(self) -> bool:
        """Whether the outcome was reported without waiting for the body's end."""
        return self.state is BodyState.DETACHED

    def _cancel(self, verdict: Verdict, now: float) -> None:
        self.state = BodyState.CANCELLED
        self.verdict = verdict
        self.refuses_at = now + self.grace
