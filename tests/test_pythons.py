"""``make test-python``: where another Python is looked for, and what is said without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent


def run(*command, **variables):
    """Run *command* without pyenv's Pythons, and outside of CI but for what *variables* say."""
    # Nor with what a make that has called the tests was told.
    left_out = ("CI", "MAKEFLAGS", "ENVIRONMENTS", "PYTHON", "ARGS")
    environ = {name: value for name, value in os.environ.items() if name not in left_out}
    return subprocess.run(
        command,
        cwd=CHECKOUT,
        env={**environ, "PYENV_ROOT": os.devnull, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(("ci", "code"), [({}, 0), ({"CI": "true"}, 1)], ids=["here", "in CI"])
def test_python_that_cannot_be_had(ci, code):
    """It is left out with a sentence, and fails where everything is to be tested."""
    done = run("tests/python.sh", "3.99", **ci)

    assert done.returncode == code
    assert "Python 3.99 is not on PATH" in done.stderr
    assert "its tests are not run" in done.stderr


def test_version_that_is_none():
    """What is no version is an error, not a Python that is missing."""
    done = run("tests/python.sh", "python3.14")

    assert done.returncode == 2
    assert "VERSION is like 3.14" in done.stderr


def test_pyenv_of_several_patch_versions_is_asked_for_the_newest(tmp_path):
    """A Python of pyenv's that works is taken, the newest, and no free-threaded build."""
    for name in ("3.99.9", "3.99.10", "3.99.11t"):
        folder = tmp_path / "versions" / name / "bin"
        folder.mkdir(parents=True)
        python = folder / "python3.99"
        python.write_text(f"#!/bin/sh\necho 'asked: {name}' >&2\nexit 1\n")
        python.chmod(0o755)
    script = (CHECKOUT / "tests/python.sh").read_text().replace("2>/dev/null </dev/null", "")
    copy = tmp_path / "tests" / "python.sh"
    copy.parent.mkdir()
    copy.write_text(script)

    done = run("bash", str(copy), "3.99", PYENV_ROOT=str(tmp_path))

    asked = [line for line in done.stderr.splitlines() if line.startswith("asked")]
    assert asked == ["asked: 3.99.10", "asked: 3.99.9"]


def environment_of(*arguments):
    """The environment that ``make test`` with *arguments* uses."""
    done = run("make", "-n", "-B", "test", *arguments)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "-m pytest" in line]
    return Path(line.split()[0]).parent.parent


def test_environment_of_an_interpreter():
    """Each interpreter that is named has an environment of its own."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}{sys.abiflags}"

    assert environment_of() == Path(".venv")
    assert environment_of(f"PYTHON={sys.executable}") == Path(f".venv-{version}")
