"""Other libraries, each in an environment of its own, made when it is first needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["environment"]

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
