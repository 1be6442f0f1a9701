"""The pictures, as PNG."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from .tables import medians

__all__ = ["draw"]


def draw(session: dict[str, Any], folder: Path) -> None:
    """Write the pictures of what *session* has to *folder*."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(exist_ok=True)
    from matplotlib import pyplot

    if session["rows"]:
        _draw_throughput(pyplot, session["rows"], folder / "throughput.png")
    for name, draw_lines in (("latency", _latency_lines), ("memory", _memory_lines)):
        if session["scenarios"].get(name):
            figure, panel = pyplot.subplots(figsize=(8, 4), layout="constrained")
            draw_lines(panel, _without_errors(session["scenarios"][name]))
            if panel.lines:
                panel.legend()
            figure.savefig(folder / f"{name}.png", dpi=120)
            pyplot.close(figure)


def _without_errors(samples: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {
        pool: runs
        for pool, runs in samples.items()
        if runs and not any("error" in run for run in runs)
    }


def _latency_lines(panel: Any, samples: dict[str, list[Any]]) -> None:
    for pool, runs in samples.items():
        for share in runs[0]["loads"]:
            loads = [run["loads"][share]["start"] for run in runs]
            names = list(loads[0])
            values = [median(load[name] for load in loads) * 1000 for name in names]
            panel.plot(names, values, marker="o", label=f"{pool}, {float(share):.0%} load")
    panel.set_yscale("log")
    panel.set_ylabel("ms from publish to start")


def _memory_lines(panel: Any, samples: dict[str, list[Any]]) -> None:
    for pool, runs in samples.items():
        points = [n for n in runs[0]["memory"] if all(run["memory"][n] for run in runs)]
        values = [median(run["memory"][point] for run in runs) / 2**20 for point in points]
        panel.plot([int(point) for point in points], values, marker="o", label=pool)
    panel.set_xscale("symlog")
    panel.set_xlabel("waiting tasks")
    panel.set_ylabel("MiB (PSS), all processes")


def _draw_throughput(pyplot: Any, rows: dict[str, Any], path: Path) -> None:
    """One panel for each row."""
    figures = {name: medians(row["samples"], "rate") for name, row in rows.items()}
    figures = {name: rates for name, rates in figures.items() if rates}
    if not figures:
        return
    heights = [0.7 + 0.25 * len(rates) for rates in figures.values()]
    figure, panels = pyplot.subplots(
        *(len(figures), 1),
        figsize=(8, sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for panel, (name, rates) in zip(panels[:, 0], figures.items(), strict=True):
        row = rows[name]
        samples = [[s["rate"] for s in row["samples"][pool]] for pool in rates]
        errors = [
            [rate - min(runs) for rate, runs in zip(rates.values(), samples, strict=True)],
            [max(runs) - rate for rate, runs in zip(rates.values(), samples, strict=True)],
        ]
        colours = ["tab:orange" if pool == "asyncpool" else "tab:blue" for pool in rates]
        panel.barh(list(rates), list(rates.values()), xerr=errors, color=colours)
        panel.set_title(f"{row['title']}, {row['in_flight']} in flight", fontsize=9)
        panel.invert_yaxis()
    panels[-1, 0].set_xlabel("tasks per second")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
