"""Celery's tests: in its source distribution, which the package index has."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path


def fetch(version: str, folder: Path) -> Path:
    """Return a folder with the tests of Celery *version*, unchanged; it may be there already.

    Only them and their configuration: with Celery's package beside them they
    would test that one, and not the installed one.
    """
    target = folder / f"celery-{version}"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unpack(_download(version, folder), target)
    return target


def unpack(archive: Path, target: Path) -> None:
    """Take the tests out of *archive*; *target* appears when all is there."""
    partial = target.with_name(f"{target.name}.partial")
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            _, _, name = member.name.partition("/")
            if name == "pyproject.toml" or name.startswith("t/"):
                tar.extract(member.replace(name=name), partial, filter="data")
    partial.rename(target)


def _download(version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", ":all:", "--dest", str(folder), f"celery=={version}"]
    subprocess.run(command, check=True)
    (archive,) = folder.glob(f"celery-{version}.tar.gz")
    return archive
