"""benchmarks/fleet.py, in small."""

import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import require
from ..servers import RedisServer

ROOT = Path(__file__).parents[2]


def run(*options):
    command = [sys.executable, "-m", "benchmarks.fleet", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--workers", "0", "--workers: numbers of at least 1"),
        ("--rate", "0", "--rate: more than 0"),
        ("--count", "0", "--count: 1 to 5000"),
        ("--count", "5001", "--count: 1 to 5000"),
    ],
)
def test_bad_option(option, value, sentence):
    """It says what is allowed, and starts nothing."""
    done = run(option, value)

    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(f"error: {sentence}")


def test_fleet():
    """A line for each fleet, with and without batches; every message has arrived."""
    require(RedisServer)

    done = run("--workers", "1", "3", "--rate", "500", "--count", "50")

    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[:2] for row in rows] == [
        ["1", "without"],
        ["1", "with"],
        ["3", "without"],
        ["3", "with"],
    ]
    assert all(0 < float(row[4]) <= float(row[5]) for row in rows)  # p50 and p99
    assert [row[6] for row in rows[:2]] == ["100%", "100%"]
