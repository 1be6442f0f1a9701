"""The counts of a soak, and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .check import DOUBLED, LEAKED, LOST, WRONG

if TYPE_CHECKING:
    from .run import Outcome

#: Findings that are printed.
MOST = 20


def report(outcome: Outcome, seed: int) -> str:
    """Return the text to print."""
    verdict = outcome.verdict
    outcomes = {f"{kind}: {end}": count for (kind, end), count in verdict.outcomes.items()}
    lines = [f"tasks sent: {outcome.sent}"]
    lines += _table("outcomes by kind", dict(sorted(outcomes.items())))
    lines += _table("faults by kind", outcome.faults)
    lines += _table("what came of them", outcome.events)
    lines += _table("messages delivered again", verdict.delivered_again)
    lines += _table("run again after a fault, its end not yet acknowledged", verdict.run_again)
    if verdict.overwritten:
        lines.append(f"state RETRY stored after the end of the retry: {verdict.overwritten}")
    if verdict.findings:
        lines += ["wrong:", *(f"  {finding}" for finding in verdict.findings[:MOST])]
        if len(verdict.findings) > MOST:
            lines.append(f"  ... and {len(verdict.findings) - MOST} more, in findings.txt")
    words = (LOST, DOUBLED, LEAKED, WRONG)
    lines.append(", ".join(f"{word} {verdict.count(word)}" for word in words))
    lines.append(f"seed {seed}")
    return "\n".join(lines)


def _table(title: str, counts: Mapping[str, int]) -> list[str]:
    width = max((len(name) for name in counts), default=0)
    rows = [f"  {name:<{width}}  {count}" for name, count in counts.items()]
    return [f"{title}: {sum(counts.values())}", *rows]
