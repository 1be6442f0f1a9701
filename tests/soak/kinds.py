"""The kinds of tasks that the soak sends, and how each may end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

SUCCESS = "SUCCESS"

#: The end of a body over its hard limit: the pool reports it, the body may have no say.
HARD = "TimeLimitExceeded"
SOFT = "SoftTimeLimitExceeded"


def _nothing(rng: Random) -> dict[str, Any]:
    return {}


def _token(token: int, arguments: dict[str, Any]) -> Any:
    return token


@dataclass(frozen=True)
class Kind:
    """One kind of task.

    Attributes:
        task: its name in ``apps/soak.py``.
        weight: how many of all tasks are of this kind, in relation to the others.
        ends: outcomes of which it may have any: ``SUCCESS`` or an exception's name.
        arguments: makes its arguments; they always have a token before them.
        options: how it is sent.
        result: what it returns, by its token and arguments.
    """

    name: str
    task: str
    weight: int
    ends: frozenset[str]
    arguments: Callable[[Random], dict[str, Any]] = _nothing
    options: dict[str, Any] = field(default_factory=dict)
    result: Callable[[int, dict[str, Any]], Any] = _token

    @property
    def may_time_out(self) -> bool:
        """Whether it may end without a word of its body."""
        return HARD in self.ends


def _seconds(least: float, most: float) -> Callable[[Random], dict[str, Any]]:
    return lambda rng: {"seconds": round(rng.uniform(least, most), 3)}


def _nap(rng: Random) -> dict[str, Any]:
    # Most are short; some outlive a fault or two.
    return {"seconds": round(min(rng.expovariate(1 / 0.7), 6.0), 3)}


def _spawn(rng: Random) -> dict[str, Any]:
    return {"seconds": round(rng.uniform(0.1, 3.0), 3), "session": rng.random() < 0.5}


def _retry(fails: bool) -> Callable[[Random], dict[str, Any]]:
    return lambda rng: {
        "times": rng.randint(1, 3),
        "countdown": round(rng.uniform(0.05, 1.0), 3),
        "fails": fails,
    }


def _limits(soft: float | None, hard: float | None) -> dict[str, Any]:
    return {"soft_time_limit": soft, "time_limit": hard}


def _kind(name: str, task: str, weight: int, ends: set[str], *args: Any, **kwargs: Any) -> Kind:
    return Kind(name, task, weight, frozenset(ends), *args, **kwargs)


def _spawned(token: int, arguments: dict[str, Any]) -> Any:
    return [token, 0]


#: Faults more than tasks: sent where the plan has a fault.
BLOCK = _kind("blocks the loop", "block", 0, {SUCCESS}, _seconds(1.0, 2.0))
BLOCK_ON = _kind(
    "blocks the loop past its hard limit", "block_on", 0, {HARD}, options=_limits(None, 1)
)
REFUSE = _kind("refuses its hard limit", "refuse", 0, {HARD}, options=_limits(None, 1))

KINDS = {
    kind.name: kind
    for kind in (
        _kind("awaits", "nap", 30, {SUCCESS}, _nap),
        _kind("burns CPU", "burn", 8, {SUCCESS}, _seconds(0.005, 0.1)),
        _kind("burns CPU, def", "def_burn", 4, {SUCCESS}, _seconds(0.005, 0.1)),
        _kind("sleeps, def", "def_nap", 12, {SUCCESS}, _nap),
        _kind("fails", "fail", 6, {"ValueError"}, _seconds(0.0, 1.0)),
        _kind("fails, def", "def_fail", 4, {"ValueError"}, _seconds(0.0, 1.0)),
        _kind("retries", "retry", 7, {SUCCESS}, _retry(fails=False)),
        _kind("retries, def", "def_retry", 4, {SUCCESS}, _retry(fails=False)),
        _kind("retries and fails", "retry", 3, {"KeyError"}, _retry(fails=True)),
        _kind("retries and fails, def", "def_retry", 2, {"KeyError"}, _retry(fails=True)),
        _kind("meets its soft limit", "overrun", 3, {SOFT}, options=_limits(1, None)),
        # Where its process was stopped meanwhile, the parent's own clock acts.
        _kind("meets soft, then hard limit", "overrun", 2, {SOFT, HARD}, options=_limits(1, 3)),
        _kind("cleans up at its soft limit", "clean_up", 3, {SUCCESS}, options=_limits(1, None)),
        _kind("meets its soft limit, def", "def_overrun", 2, {SOFT}, options=_limits(1, None)),
        _kind("meets its hard limit", "overrun", 3, {HARD}, options=_limits(None, 1)),
        _kind("meets its hard limit, def", "def_overrun", 2, {HARD}, options=_limits(None, 1)),
        _kind("waits for a subprocess", "spawn", 5, {SUCCESS}, _spawn, result=_spawned),
        _kind("waits for a subprocess, def", "def_spawn", 3, {SUCCESS}, _spawn, result=_spawned),
        _kind("times out with a subprocess", "spawn_overrun", 2, {HARD}, options=_limits(None, 1)),
        BLOCK,
        BLOCK_ON,
        REFUSE,
    )
}
