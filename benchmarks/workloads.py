"""The rows of the throughput table: what the tasks do, how many there are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

__all__ = ["TARGET_ROWS", "WORKLOADS", "Workload"]


@dataclass(frozen=True, slots=True)
class Workload:
    """One row.

    Attributes:
        title: what the tasks do, in words.
        body: the name of the body in :mod:`.bodies`.
        in_flight: slots that each pool has, the same for all.
        args: of the body, after the number; ``"$NAME"`` is filled in by the harness.
        least: tasks of a run at least.
        most: tasks of a run at most.
        form: run this form in all pools instead of the one that suits each.
        with_result: whether results are stored.
        is_far: whether broker and backend are behind the delay proxy.
        ceiling: whether the ``ceiling`` pool says anything here.
        peers: whether other libraries are asked as well.
    """

    title: str
    body: str
    in_flight: int
    args: tuple[Any, ...] = ()
    least: int = 200
    most: int = 30_000
    form: str | None = None
    with_result: bool = True
    is_far: bool = False
    ceiling: bool = False
    peers: bool = False

    @property
    def trial(self) -> int:
        """Tasks of the trial before the clock starts."""
        return min(max(300, self.in_flight), 1000, self.most)

    def tasks_for(self, rate: float, seconds: float) -> int:
        """Return how many tasks at *rate* fill the *seconds*, in round figures."""
        tasks = float(f"{rate * seconds:.2g}")
        return int(min(max(tasks, self.least, self.in_flight), self.most))

    def in_small(self) -> Workload:
        """Return the row with so few tasks that its figures say nothing."""
        return dataclasses.replace(self, least=20, most=max(self.in_flight // 20, 100))


WORKLOADS = {
    "noop": Workload("no-op, results stored", "noop", 20, ceiling=True, peers=True),
    "noop-alone": Workload("no-op, one at a time", "noop", 1, peers=True),
    "noop-no-results": Workload(
        "no-op, results ignored", "noop", 20, with_result=False, ceiling=True
    ),
    "def": Workload("`def` no-op, results stored", "noop", 20, form="sync"),
    "wait-100ms": Workload("await 100 ms", "wait", 50, (0.1,)),
    "wait-100ms-1000": Workload("await 100 ms", "wait", 1000, (0.1,)),
    "wait-1s-10000": Workload(
        "await 1 s", "wait", 10_000, (1.0,), least=10_000, most=10_000, peers=True
    ),
    "http": Workload("HTTP request, 50 ms", "http", 500, ("$URL", 500), peers=True),
    "mixed": Workload("3 ms CPU + 30 ms await", "mixed", 50, ("$TURNS", 0.03), peers=True),
    "payload": Workload("64 KiB argument", "payload", 20, ("$DATA", 65536), most=4000),
    "blocking": Workload("await 10 ms, 1 in 100 blocks 50 ms", "blocking", 50, (100, 0.05, 0.01)),
    "noop-far": Workload("no-op, broker 2 ms away", "noop", 20, is_far=True, ceiling=True),
    "wait-100ms-far": Workload("await 100 ms, broker 2 ms away", "wait", 50, (0.1,), is_far=True),
}

#: Rows that a target speaks of.
TARGET_ROWS = ("noop", "wait-1s-10000", "http", "mixed")
