"""The real harness with real workers, in small."""

import json

import pytest

from benchmarks.__main__ import main
from benchmarks.report import render

from ..conftest import require
from ..servers import RedisServer


def test_a_pool_has_a_figure_for_each_round(tmp_path, capsys):
    """The sample has a rate, CPU time, memory and a start-up time; nothing failed."""
    require(RedisServer)
    path = tmp_path / "results.json"

    code = main(
        [
            *("--quick", "--only", "noop", "--pools", "asyncpool"),
            *("--rounds", "1", "--output", str(path)),
        ]
    )

    session = json.loads(path.read_text())
    assert code == 0, session
    assert session["is_complete"]
    [(pool, [sample])] = session["rows"]["noop"]["samples"].items()
    assert pool == "asyncpool"
    assert min(sample["rate"], sample["cpu_per_1000"], sample["startup"]) > 0
    assert sample["tasks"] == session["rows"]["noop"]["tasks"]["asyncpool"]
    assert sample["memory"] > 2**20
    assert session["machine"]["cpus"] >= 1
    assert session["versions"]["redis-server"]
    assert "these figures say nothing" in render("{numbers}", session)


def test_pictures_are_drawn_from_what_there_is(tmp_path):
    """Also of rows and measures in which some pool, or every pool, has failed."""
    pytest.importorskip("matplotlib")
    from benchmarks.plots import draw

    times = {"p50": 0.001, "p95": 0.002, "p99": 0.003}
    loads = {share: {"start": times} for share in ("0.5", "0.9")}
    error = [{"error": "x"}]
    draw(
        {
            "rows": {
                "noop": {
                    "title": "no-op",
                    "in_flight": 20,
                    "samples": {"asyncpool": [{"rate": 1.0}, {"rate": 2.0}], "gevent": error},
                },
                "http": {"title": "HTTP", "in_flight": 5, "samples": {"asyncpool": error}},
            },
            "scenarios": {
                "latency": {"asyncpool": [{"loads": loads}], "gevent": error},
                "memory": {"asyncpool": error, "gevent": []},
            },
        },
        tmp_path,
    )

    names = ["latency.png", "memory.png", "throughput.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
