"""benchmarks/sizing.py: its tables, and one sweep in small on a real worker."""

import json

from benchmarks import sizing

from ..conftest import require
from ..servers import RedisServer

SAMPLES = {"rate": 100.0, "cpu_per_1000": 2.0, "memory": 50 * 2**20}


def test_report():
    """A table for each sweep, a line for each value, under the session's date and commit."""
    sweep = {"title": "await", "option": "-c", "samples": {"10": [SAMPLES], "20": [SAMPLES]}}
    data = {
        "date": "2026-01-02T03:04:05",
        "commit": "c" * 40,
        "is_clean": True,
        "rounds": 1,
        "sweeps": {"a": sweep},
    }

    text = sizing.report(data)

    assert text.startswith("2026-01-02, commit cccccccccccc, 1 rounds.")
    assert "await:" in text
    assert [line.split(" | ")[0] for line in text.splitlines()[-2:]] == ["| 10", "| 20"]


def test_nothing_measured(tmp_path):
    """Before the first session the report says how to measure."""
    assert "benchmarks.sizing" in sizing.report(sizing.newest(tmp_path))


def test_quick(monkeypatch, tmp_path, capsys):
    """A sweep runs a worker for each value, and saves what it has seen."""
    require(RedisServer)
    monkeypatch.setattr(sizing, "FOLDER", tmp_path)

    sizing.main(["--quick", "--only", "threads"])

    samples = json.loads((tmp_path / "quick.json").read_text())["sweeps"]["threads"]["samples"]
    assert [len(runs) for runs in samples.values()] == [1, 1, 1]
    assert all(run["rate"] > 0 for runs in samples.values() for run in runs)
    assert "asyncpool_threads" in capsys.readouterr().out
