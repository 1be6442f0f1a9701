"""The file of one session: what was measured, where, and with which versions."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .pools import usable_cpus

__all__ = ["describe", "load", "name_commit", "new_path", "newest", "save"]

FOLDER = Path(__file__).parent / "results"
PACKAGES = (
    *("celery", "kombu", "billiard", "celery-asyncpool", "uvloop", "greenlet", "gevent"),
    *("redis", "aiohttp", "urllib3"),
)


def describe() -> dict[str, Any]:
    """Say on what machine, and with what, the figures are measured."""
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "is_clean": None if changes is None else not changes,
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


def name_commit(data: dict[str, Any]) -> str:
    """Say of which commit the figures of a session are, if it could tell."""
    if data["commit"] is None:
        return "an unknown commit"
    return f"commit {data['commit'][:12]}{'' if data['is_clean'] else ' with changes'}"


def new_path(is_quick: bool = False) -> Path:
    """Return where a session of today is saved; no other is overwritten.

    Quick ones say nothing, and go where git does not look.
    """
    if is_quick:
        return FOLDER / "quick.json"
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    numbers = itertools.count(2)
    path = FOLDER / f"{today}.json"
    while path.exists():
        path = FOLDER / f"{today}-{next(numbers)}.json"
    return path


def save(results: dict[str, Any], path: Path) -> None:
    """Write *results* to *path*, wholly or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(results, indent=1) + "\n")
    draft.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Return what a session has saved."""
    results: dict[str, Any] = json.loads(path.read_text())
    return results


def newest(folder: Path = FOLDER) -> dict[str, Any] | None:
    """Return the newest results that are not of a quick session, None where there are none."""
    paths = sorted(folder.glob("2*.json"), key=lambda path: path.stem)
    return load(paths[-1]) if paths else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*args: str) -> str | None:
    """Return what git says; None where there is none, or no repository that it would read."""
    try:
        done = subprocess.run(
            ["git", *args], cwd=FOLDER.parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "")
