"""A body that blocks its loop past its hard limit, with neighbours."""

import pytest
from ending import Ending, ending_well
from worker import wait_for


@pytest.fixture(scope="module")
def worker(transport, start_worker):
    worker = start_worker(transport, "chaos", "-E", "-c", 100, "--processes", 2)
    with ending_well(worker):
        yield worker


@pytest.mark.parametrize("blocker", ["block", "block_late"])
def test_blocked_loop(worker, tmp_path, blocker):
    """It times out; its neighbours are lost or redelivered, and what was to come runs."""
    with Ending(worker, tmp_path) as ending:
        gate = ending.gate()
        early, late = ending.send("hold", str(gate), count=20)
        ending.wait_started(*early, *late)

        blocking = worker.client.send(blocker, 600, time_limit=1)
        ending.wait_started(blocking)
        [line] = worker.records("started", id=blocking.id)
        ids = {started["id"] for started in worker.records("started", pid=line["pid"])}
        lost = [result for result in early if result.id in ids]
        again = [result for result in late if result.id in ids]
        others = [result for result in (*early, *late) if result.id not in ids]
        # Some go to the blocked process, which does not even accept them.
        for some in ending.send("pid", count=20):
            others += some
        wait_for(lambda: line["pid"] not in worker.pool_pids(), worker.tail)
        ending.wait_started(*again, times=2)
        gate.touch()

        assert len(lost) == len(again) == 10
        ending.check(ended=others + again, lost=lost, timed_out=[blocking])
        assert ending.runs(*others, *lost, blocking) == len(others + lost) + 1
        assert ending.runs(*again) == 2 * len(again)
        assert all("its loop is blocked" in str(result.result) for result in lost)
