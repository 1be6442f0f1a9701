"""What happens when, all of it from the seed: the same seed is the same soak."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from .kinds import BLOCK, BLOCK_ON, KINDS, REFUSE, Kind

#: Tasks per second, on average; every now and then as many at once as in seconds.
RATE = 20.0
BURST_SECONDS = 3.0
BURSTS_PER_MINUTE = 3

#: Seconds between two faults, on average.
FAULT_EVERY = 2.0

#: Seconds at the start and before the end in which no fault begins.
CALM_START, CALM_END = 3.0, 3.0


@dataclass(frozen=True)
class Send:
    """Send a task, *at* so many seconds."""

    at: float
    kind: Kind
    token: int
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Strike:
    """Let a fault happen, *at* so many seconds."""

    at: float
    fault: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """All tasks and faults, each in the order of their times."""

    seconds: float
    sends: list[Send]
    strikes: list[Strike]


KILL = "kill -9 of a process"
STOP = "process stopped for a while"
RESTART = "pool_restart"
RESIZE = "pool_grow or pool_shrink"
CUT = "broker cut"

#: The faults that are tasks.
BAD_TASKS = {kind.name: kind for kind in (BLOCK, BLOCK_ON, REFUSE)}

#: How many of each fault are in one shuffled deck.
DECK = {
    KILL: 5,
    STOP: 4,
    RESTART: 1,
    RESIZE: 3,
    CUT: 3,
    BLOCK.name: 3,
    BLOCK_ON.name: 2,
    REFUSE.name: 1,
}

FAULTS = tuple(DECK)


def make_plan(seed: int, minutes: float, slots: int, faults: Collection[str] = FAULTS) -> Plan:
    """Plan *minutes* of *faults* for a worker that has so many *slots* at first."""
    seconds = minutes * 60
    rng = Random(seed)
    strikes = list(_strikes(Random(rng.random()), seconds, slots, faults))
    sends = list(_sends(Random(rng.random()), seconds))
    bad_rng = Random(rng.random())
    bad = [(strike.at, BAD_TASKS[strike.fault]) for strike in strikes if strike.fault in BAD_TASKS]
    tokens = itertools.count(1)
    return Plan(
        seconds,
        [
            Send(at, kind, next(tokens), kind.arguments(bad_rng))
            for at, kind in sorted([*sends, *bad], key=lambda send: send[0])
        ],
        strikes,
    )


def _sends(rng: Random, seconds: float) -> Iterator[tuple[float, Kind]]:
    kinds = list(KINDS.values())
    weights = [kind.weight for kind in kinds]
    times = list(_times(rng, RATE, 0.0, seconds))
    for _ in range(round(BURSTS_PER_MINUTE * seconds / 60)):
        times += [rng.uniform(0.0, seconds)] * round(RATE * BURST_SECONDS)
    times.sort()
    yield from zip(times, rng.choices(kinds, weights, k=len(times)), strict=True)


def _strikes(rng: Random, seconds: float, slots: int, faults: Collection[str]) -> Iterator[Strike]:
    deck: list[str] = []
    for at in _times(rng, 1 / FAULT_EVERY, CALM_START, seconds - CALM_END):
        if not deck:
            deck = [fault for fault in DECK if fault in faults for _ in range(DECK[fault])]
            rng.shuffle(deck)
        fault = deck.pop()
        yield Strike(at, fault, _fault_arguments(rng, fault, slots))


def _fault_arguments(rng: Random, fault: str, slots: int) -> dict[str, Any]:
    if fault == KILL:
        return {"which": rng.randrange(1000)}
    if fault == STOP:
        return {"which": rng.randrange(1000), "seconds": round(rng.uniform(0.1, 4.0), 3)}
    if fault == RESIZE:
        return {"slots": rng.randint(slots // 4, slots * 2)}
    if fault == CUT:
        return {"seconds": round(rng.uniform(0.1, 3.0), 3)}
    return {}


def _times(rng: Random, rate: float, start: float, end: float) -> Iterator[float]:
    """Yield random moments, *rate* per second on average."""
    at = start
    while (at := at + rng.expovariate(rate)) < end:
        yield at
