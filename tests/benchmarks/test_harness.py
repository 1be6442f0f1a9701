"""The real harness with real workers, in small."""

import json

from benchmarks.__main__ import main

from ..conftest import require
from ..servers import RedisServer


def test_two_pools_have_a_figure_for_each_round(tmp_path, monkeypatch):
    """Each sample has a rate, CPU time, memory and a start-up time; nothing failed."""
    require(RedisServer)
    path = tmp_path / "results.json"

    code = main(
        ["--quick", "--only", "noop", "--pools", "asyncpool", "prefork", "--output", str(path)]
    )

    session = json.loads(path.read_text())
    assert code == 0, session
    samples = session["rows"]["noop"]["samples"]
    assert {pool: len(runs) for pool, runs in samples.items()} == {"asyncpool": 1, "prefork": 1}
    for [sample] in samples.values():
        assert min(sample["rate"], sample["cpu_per_1000"], sample["startup"]) > 0
        assert sample["memory"] > 2**20
    assert session["commit"]
    assert session["machine"]["cpus"] >= 1
