"""What we aim at, each a figure that is computed from one session's results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .stats import summarise

__all__ = ["TARGETS", "Target", "figure", "per_task"]

OURS = "asyncpool"
#: Waiting tasks by which one can tell what each takes.
MANY = 1000

Session = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """One line of the table.

    Attributes:
        what: in words.
        limit: the figure that is aimed at.
        measure: returns the figure of a session, None where it was not measured.
        is_least: whether more is better.
        unit: of the figure.
    """

    what: str
    limit: float
    measure: Callable[[Session], float | None]
    is_least: bool = True
    unit: str = ""

    def is_met(self, value: float) -> bool:
        """Whether *value* is enough."""
        return value >= self.limit if self.is_least else value <= self.limit


def figure(runs: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Return the median of *key*; None if there was an error, or nothing to measure it by."""
    if not runs or any(run.get(key) is None for run in runs):
        return None
    return summarise([run[key] for run in runs]).median


def per_task(memory: Mapping[str, int | None]) -> float | None:
    """Return the bytes that each of the most tasks takes that waited at once."""
    most = max(memory, key=int)
    now, before = memory[most], memory["0"]
    return None if now is None or before is None else (now - before) / int(most)


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or not theirs else ours / theirs


def _runs(session: Session, scenario: str, pool: str) -> Sequence[Mapping[str, Any]]:
    runs: Sequence[Mapping[str, Any]] = session["scenarios"].get(scenario, {}).get(pool, ())
    return runs


def _rate(session: Session, row: str, pool: str) -> float | None:
    return figure(session["rows"].get(row, {}).get("samples", {}).get(pool, ()), "rate")


def _faster(row: str, pool: str, session: Session, ours: str = OURS) -> float | None:
    return _ratio(_rate(session, row, ours), _rate(session, row, pool))


def _waiting(session: Session) -> float | None:
    """Return kB; None if there were too few tasks to tell."""
    memory = [run["memory"] for run in _good(_runs(session, "memory", OURS))]
    if not all(max(map(int, one)) >= MANY for one in memory):
        return None
    each = figure([{"each": per_task(one)} for one in memory], "each")
    return None if each is None else each / 1000


def _good(runs: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return *runs*; none of them if there was an error."""
    return () if any("error" in run for run in runs) else runs


def _at_rest(pool: str, session: Session) -> float | None:
    ours, theirs = (figure(_runs(session, "rest", name), "memory") for name in (OURS, pool))
    return _ratio(ours, theirs)


def _idle(session: Session) -> float | None:
    share = figure(_runs(session, "rest", OURS), "idle_cpu")
    return None if share is None else share * 100


def _delay(pool: str, session: Session) -> float | None:
    ours, theirs = (
        figure([run["loads"]["0.5"]["start"] for run in _good(runs)], "p99")
        for runs in (_runs(session, "latency", name) for name in (OURS, pool))
    )
    return _ratio(ours, theirs)


TARGETS = (
    Target("no-op, against `ceiling`", 0.95, partial(_faster, "noop", "ceiling"), unit=" x"),
    Target("no-op, against prefork", 1.4, partial(_faster, "noop", "prefork"), unit=" x"),
    Target(
        "await 1 s with 10,000 in flight, against gevent",
        3.5,
        partial(_faster, "wait-1s-10000", "gevent"),
        unit=" x",
    ),
    Target("HTTP, against gevent", 1.5, partial(_faster, "http", "gevent"), unit=" x"),
    Target(
        "3 ms CPU + 30 ms await, against gevent",
        1.8,
        partial(_faster, "mixed", "gevent"),
        unit=" x",
    ),
    Target("memory of a waiting task", 20, _waiting, is_least=False, unit=" kB"),
    Target(
        "memory at rest, against prefork with as many processes",
        1,
        partial(_at_rest, "prefork"),
        is_least=False,
        unit=" x",
    ),
    Target(
        "p99 from publish to start at 50 % load, against prefork",
        1,
        partial(_delay, "prefork"),
        is_least=False,
        unit=" x",
    ),
    Target("CPU of an idle worker", 0.5, _idle, is_least=False, unit=" %"),
    Target(
        "`ceiling-batches`, against `ceiling`",
        3,
        partial(_faster, "noop", "ceiling", ours="ceiling-batches"),
        unit=" x",
    ),
    Target(
        "no-op with batches, against prefork", 2.5, partial(_faster, "noop", "prefork"), unit=" x"
    ),
    Target("no-op, against taskiq", 1, partial(_faster, "noop", "taskiq"), unit=" x"),
    Target(
        "await 1 s with 10,000 in flight, against taskiq",
        1,
        partial(_faster, "wait-1s-10000", "taskiq"),
        unit=" x",
    ),
    Target(
        "p99 from publish to start at 50 % load, against asyncpool without batches",
        1,
        partial(_delay, "asyncpool-off"),
        is_least=False,
        unit=" x",
    ),
)
