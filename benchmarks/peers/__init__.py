"""Other libraries, each in an environment of its own, made when it is first needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["environment", "pins"]

FOLDER = Path(__file__).parent
CACHE = FOLDER / ".cache"


def environment(name: str) -> Path:
    """Return the ``bin`` folder with what ``<name>/requirements.txt`` pins."""
    wanted = (FOLDER / name / "requirements.txt").read_text()
    folder = CACHE / name
    done = folder / "installed.txt"
    if not done.exists() or done.read_text() != wanted:
        print(f"installing {name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--requirement"]
        subprocess.run([*pip, FOLDER / name / "requirements.txt"], check=True)
        done.write_text(wanted)
    return folder / "bin"


def pins(name: str) -> dict[str, str]:
    """Return the versions of what *name* itself is made of."""
    lines = (FOLDER / name / "requirements.txt").read_text().split()
    found = dict(line.split("==") for line in lines)
    return {p: v for p, v in found.items() if p.startswith(name.replace("_", "-"))}
