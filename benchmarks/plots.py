"""The pictures, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .tables import medians

__all__ = ["draw"]


def draw(session: dict[str, Any], folder: Path) -> None:
    """Write ``throughput.png`` to *folder*: one panel for each row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = session["rows"]
    figure, panels = pyplot.subplots(
        len(rows), 1, figsize=(8, 1.6 * len(rows)), squeeze=False, layout="constrained"
    )
    for panel, row in zip(panels[:, 0], rows.values(), strict=True):
        rates = medians(row["samples"], "rate")
        samples = [[s["rate"] for s in row["samples"][pool]] for pool in rates]
        errors = [
            [rate - min(runs) for rate, runs in zip(rates.values(), samples, strict=True)],
            [max(runs) - rate for rate, runs in zip(rates.values(), samples, strict=True)],
        ]
        panel.barh(list(rates), list(rates.values()), xerr=errors)
        panel.set_title(f"{row['title']}, {row['in_flight']} in flight", fontsize=9)
        panel.invert_yaxis()
    panels[-1, 0].set_xlabel("tasks per second")
    figure.savefig(folder / "throughput.png", dpi=120)
    pyplot.close(figure)
