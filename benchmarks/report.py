"""Renders the newest results into ``benchmarks/README.md``, with pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import results, sizing
from .tables import (
    latency_table,
    losses,
    memory_table,
    recovery_table,
    rest_table,
    targets_table,
    throughput_table,
)

__all__ = ["render", "summary", "write"]

FOLDER = Path(__file__).parent
TEMPLATE = FOLDER / "README.template.md"


def write(path: Path | None = None) -> Path:
    """Render README.md from the results at *path*, or the newest; return its path.

    Without results it has the method only.
    """
    session = results.load(path) if path is not None else results.newest()
    readme = FOLDER / "README.md"
    text = render(TEMPLATE.read_text(), session)
    readme.write_text(text.replace("{sizing}", sizing.report(sizing.newest())))
    if session is not None:
        from .plots import draw

        draw(session, FOLDER / "results")
    return readme


def render(template: str, session: dict[str, Any] | None) -> str:
    """Return *template* with the figures of *session* filled in."""
    numbers = "Not measured yet: run `make bench`.\n"
    lost = "Not measured yet."
    if session is not None:
        numbers = _numbers(session)
        lines = losses(session)
        lost = "\n".join(f"- {line}." for line in lines) or "Nowhere in what was measured."
    return template.replace("{numbers}", numbers).replace("{losses}", lost)


def summary(session: dict[str, Any]) -> str:
    """Return the tables of throughput, of the other measures what there is, and the targets."""
    parts = _scenarios(session, with_pictures=False)
    if session["rows"]:
        parts.insert(0, throughput_table(session["rows"], _pools(session), "rate"))
    parts.append(targets_table(session))
    return "\n\n".join(part for part in (*parts, _errors(session)) if part)


LATENCY = """### Latency

Milliseconds from publish to start and to the stored result, no-op tasks, 20 slots, at shares \
of each pool's own capacity. Median of the rounds (least to most)."""

REST = """### At rest

A worker with as many slots as CPUs, so that prefork has as many processes as asyncpool: \
seconds until its first task has ended; then, after 200 tasks, memory (PSS) and CPU \
(percent of one) of all its processes."""

MEMORY = """### Memory of waiting tasks

MiB (PSS) of all the worker's processes. The worker has as many slots as the most tasks \
in its line; prefork's processes are all there from the beginning."""

RECOVERY = """### After `kill -9` of a process

With 20 tasks of 100 ms running: seconds until a new process starts a task, and the tasks \
that ran in the one that was killed, which are lost (Celery acknowledges early by default)."""


def _scenarios(session: dict[str, Any], with_pictures: bool = True) -> list[str]:
    tables = (
        ("latency", LATENCY, latency_table, "![Latency by load](results/latency.png)"),
        ("rest", REST, rest_table, ""),
        ("memory", MEMORY, memory_table, "![Memory by waiting tasks](results/memory.png)"),
        ("recovery", RECOVERY, recovery_table, ""),
    )
    parts = []
    for name, title, table, picture in tables:
        if session["scenarios"].get(name):
            parts += [title, table(session["scenarios"][name])]
            parts += [picture] if picture and with_pictures else []
    return parts


def _numbers(session: dict[str, Any]) -> str:
    rows, pools = session["rows"], _pools(session)
    tables = [
        "### Throughput\n\nTasks per second: median (least to most).",
        throughput_table(rows, pools, "rate"),
        "![Throughput by pool](results/throughput.png)",
        "### CPU\n\nCPU seconds of all the worker's processes for 1,000 tasks.",
        throughput_table(rows, pools, "cpu_per_1000"),
        "### Memory after the start\n\nMiB (PSS) of all the worker's processes, after 200 tasks; "
        "one row for each number of slots.",
        throughput_table(_by_slots(rows), pools, "memory", 1 / 2**20),
        "### Start\n\nSeconds until the first task has ended.",
        throughput_table(_by_slots(rows), pools, "startup"),
    ]
    parts = [
        _provenance(session),
        "### Targets\n\nRatios of medians of this session.",
        targets_table(session),
        *(tables if rows else ()),
        *_scenarios(session),
        _omissions(rows),
        _errors(session),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _by_slots(rows: dict[str, Any]) -> dict[str, Any]:
    """Return the first row of each number of slots."""
    first: dict[int, str] = {}
    for name, row in rows.items():
        first.setdefault(row["in_flight"], name)
    return {name: rows[name] for name in first.values()}


def _errors(session: dict[str, Any]) -> str:
    """Name what went wrong, each kind once."""
    tables = {name: row["samples"] for name, row in session["rows"].items()}
    tables |= session["scenarios"]
    lines = dict.fromkeys(
        f"- `{name}`, {pool}: {_first_line(run['error'])}"
        for name, pools in tables.items()
        for pool, runs in pools.items()
        for run in runs
        if "error" in run
    )
    return "\n".join(("### Errors\n", *lines)) if lines else ""


def _first_line(error: str) -> str:
    """Return what happened: the first line, or the last one of a traceback."""
    lines = error.strip().splitlines() or [""]
    return lines[-1] if lines[0].startswith("Traceback") else lines[0].partition(";")[0]


def _provenance(session: dict[str, Any]) -> str:
    machine = session["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in session["versions"].items())
    quick = " **Quick run: these figures say nothing.**" if session["is_quick"] else ""
    if not session["is_complete"]:
        quick += " **The run was ended early.**"
    return (
        f"{session['date']}, {results.name_commit(session)}; {machine['cpus']} CPUs "
        f"({machine['cpu']}), {machine['memory'] / 2**30:.0f} GiB, {machine['system']} "
        f"{machine['kernel']}; load at the start {machine['load']:.1f}; {session['rounds']} "
        f"rounds of about {session['seconds']:g} s, {session['scenario_rounds']} of latency, "
        f"memory, rest and recovery; broker {session['broker']}; {versions}.{quick}"
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
