"""The file of one session: what was measured, where, and with which versions."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .pools import usable_cpus

__all__ = ["describe", "newest", "save"]

FOLDER = Path(__file__).parent / "results"
PACKAGES = (
    *("celery", "kombu", "billiard", "celery-asyncpool", "uvloop", "greenlet", "gevent"),
    *("redis", "aiohttp", "urllib3"),
)


def describe() -> dict[str, Any]:
    """Say on what machine, and with what, the figures are measured."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "is_clean": not _git("status", "--porcelain", "--untracked-files=no"),
        "machine": {
            "cpu": _cpu_model(),
            "cpus": usable_cpus(),
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": platform.system(),
            "kernel": platform.release(),
            "load": os.getloadavg()[0],
        },
        "versions": {
            "python": platform.python_version(),
            **{name: found for name in PACKAGES if (found := _version(name))},
        },
    }


def save(results: dict[str, Any], path: Path | None = None) -> Path:
    """Write *results*, by default to ``results/<date>.json``; return the path."""
    path = path or FOLDER / f"{results['date'][:10]}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    return path


def newest() -> dict[str, Any] | None:
    """Return the newest results, None where there are none."""
    paths = sorted(FOLDER.glob("*.json"))
    return json.loads(paths[-1].read_text()) if paths else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*args: str) -> str:
    done = subprocess.run(
        ["git", *args], cwd=FOLDER.parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "")
