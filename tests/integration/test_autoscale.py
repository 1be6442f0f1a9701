"""Scaling by load does not replace processes for nothing."""

TIMEOUT = 60


def test_short_gaps_keep_the_processes(transport, start_worker, tmp_path):
    """Between bursts with short gaps nothing is scaled down: the same processes serve all."""
    with start_worker(
        transport,
        *("limits", "--autoscale=2,1", "--processes", 2),
        env={"AUTOSCALE_KEEPALIVE": "5"},
    ) as worker:
        seen = set()
        for number in range(4):
            gate = tmp_path / f"gate {number}"
            results = [worker.client.send("hold", str(gate)) for _ in range(2)]
            worker.wait_started(*results)
            seen |= {line["pid"] for line in worker.records("started")}
            gate.touch()
            assert [result.get(timeout=TIMEOUT) for result in results] == ["held"] * 2

        assert len(seen) == 2
        assert seen == set(worker.up_processes())
