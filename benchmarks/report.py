"""Renders the newest results into ``benchmarks/README.md``, with pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import results
from .tables import latency_table, losses, memory_table, recovery_table, throughput_table

__all__ = ["render", "summary", "write"]

FOLDER = Path(__file__).parent
TEMPLATE = FOLDER / "README.template.md"


def write() -> Path:
    """Render README.md; return its path. Without results it has the method only."""
    session = results.newest()
    path = FOLDER / "README.md"
    path.write_text(render(TEMPLATE.read_text(), session))
    if session is not None:
        from .plots import draw

        draw(session, FOLDER / "results")
    return path


def render(template: str, session: dict[str, Any] | None) -> str:
    """Return *template* with the figures of *session* filled in."""
    numbers = "Not measured yet: run `make bench`.\n"
    lost = "Not measured yet."
    if session is not None:
        numbers = _numbers(session)
    if session is not None and session["rows"]:
        lines = losses(session["rows"])
        lost = "\n".join(f"- {line}" for line in lines) or "Nowhere in these rows."
    return template.replace("{numbers}", numbers).replace("{losses}", lost)


def summary(session: dict[str, Any]) -> str:
    """Return the table of throughput, and of the other measures what there is."""
    parts = _scenarios(session)
    if session["rows"]:
        parts.insert(0, throughput_table(session["rows"], _pools(session), "rate"))
    return "\n\n".join(parts)


def _scenarios(session: dict[str, Any]) -> list[str]:
    titles = {
        "latency": (
            "### Latency\n\nMilliseconds from publish to start and to the stored result, "
            "no-op tasks, at shares of each pool's own capacity.",
            latency_table,
        ),
        "memory": (
            "### Memory of waiting tasks\n\nMiB (PSS) of all the worker's processes.",
            memory_table,
        ),
        "recovery": (
            "### After `kill -9` of a process\n\nUntil a new one starts a task.",
            recovery_table,
        ),
    }
    return [
        f"{title}\n\n{table(session['scenarios'][name])}"
        for name, (title, table) in titles.items()
        if session["scenarios"].get(name)
    ]


def _numbers(session: dict[str, Any]) -> str:
    rows, pools = session["rows"], _pools(session)
    tables = [
        "### Throughput\n\nTasks per second: median (least to most).",
        throughput_table(rows, pools, "rate"),
        "![Throughput by pool](results/throughput.png)",
        "### CPU\n\nCPU seconds of all the worker's processes for 1,000 tasks.",
        throughput_table(rows, pools, "cpu_per_1000"),
        "### Memory at rest\n\nMiB (PSS) of all the worker's processes, after 200 tasks.",
        throughput_table(rows, pools, "memory", 1 / 2**20),
        "### Start\n\nSeconds until the first task has ended.",
        throughput_table(rows, pools, "startup"),
    ]
    parts = [
        _provenance(session),
        *(tables if rows else ()),
        *_scenarios(session),
        _omissions(rows),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _provenance(session: dict[str, Any]) -> str:
    machine = session["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in session["versions"].items())
    quick = " **Quick run: these figures say nothing.**" if session["is_quick"] else ""
    return (
        f"{session['date']}, commit {session['commit'][:12]}"
        f"{'' if session['is_clean'] else ' with changes'}; {machine['cpus']} CPUs "
        f"({machine['cpu']}), {machine['memory'] / 2**30:.0f} GiB, {machine['system']} "
        f"{machine['kernel']}; load at the start {machine['load']:.1f}; {session['rounds']} "
        f"rounds; broker {session['broker']}; {versions}.{quick}"
    )


def _omissions(rows: dict[str, Any]) -> str:
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, row in rows.items():
        for pool, reason in row["omitted"].items():
            reasons.setdefault((pool, reason), []).append(f"`{name}`")
    return "\n".join(
        f"- {pool} is not in {', '.join(names)}: {reason}."
        for (pool, reason), names in reasons.items()
    )


def _pools(session: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(p for row in session["rows"].values() for p in row["samples"]))
