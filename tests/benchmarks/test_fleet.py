"""benchmarks/fleet.py, in small."""

import subprocess
import sys
from pathlib import Path

from ..conftest import require
from ..servers import RedisServer

ROOT = Path(__file__).parents[2]


def test_fleet():
    """A line for each fleet, with and without batches; every message has arrived."""
    require(RedisServer)
    options = ("--workers", "1", "3", "--rate", "500", "--count", "50")

    command = [sys.executable, "-m", "benchmarks.fleet", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

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
