"""The rows of the throughput table: what the tasks do, how many there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["WORKLOADS", "Workload"]


@dataclass(frozen=True, slots=True)
class Workload:
    """One row.

    Attributes:
        title: what the tasks do, in words.
        body: the name of the body in :mod:`.bodies`.
        in_flight: slots that each pool has, the same for all.
        tasks: of one run.
        args: of the body, after the number; ``"$NAME"`` is filled in by the harness.
        form: run this form in all pools instead of the one that suits each.
        with_result: whether results are stored.
        is_far: whether broker and backend are behind the delay proxy.
        ceiling: whether the ``ceiling`` pool says anything here.
    """

    title: str
    body: str
    in_flight: int
    tasks: int
    args: tuple[Any, ...] = ()
    form: str | None = None
    with_result: bool = True
    is_far: bool = False
    ceiling: bool = False


WORKLOADS = {
    "noop": Workload("no-op, results stored", "noop", 20, 5000, ceiling=True),
    "noop-alone": Workload("no-op, one at a time", "noop", 1, 1000),
    "noop-no-results": Workload(
        "no-op, results ignored", "noop", 20, 5000, with_result=False, ceiling=True
    ),
    "def": Workload("`def` no-op, results stored", "noop", 20, 5000, form="sync"),
    "wait-100ms": Workload("await 100 ms", "wait", 50, 2000, (0.1,)),
    "wait-100ms-1000": Workload("await 100 ms", "wait", 1000, 5000, (0.1,)),
    "wait-1s-10000": Workload("await 1 s", "wait", 10_000, 10_000, (1.0,)),
    "http": Workload("HTTP request, 50 ms", "http", 500, 5000, ("$URL", 500)),
    "mixed": Workload("3 ms CPU + 30 ms await", "mixed", 50, 1000, ("$TURNS", 0.03)),
    "payload": Workload("64 KiB argument", "payload", 20, 2000, ("$DATA", 65536)),
    "blocking": Workload(
        "await 10 ms, 1 in 100 blocks 50 ms", "blocking", 50, 2000, (100, 0.05, 0.01)
    ),
    "noop-far": Workload("no-op, broker 2 ms away", "noop", 20, 1000, is_far=True, ceiling=True),
    "wait-100ms-far": Workload(
        "await 100 ms, broker 2 ms away", "wait", 50, 2000, (0.1,), is_far=True
    ),
}
