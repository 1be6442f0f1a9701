"""What a body sets of its loop and its process harms no other job, during and after it."""

import os
import signal
import time

import pytest
from apps.setters import SETTERS
from worker import PATIENCE

NEIGHBOUR = [1, 2, [1, 1], 0]


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def worker(redis_transport, start_worker, request):
    env = {"OWNERS_CONF": f"asyncpool_loop={request.param!r}"}
    options = ("-c", "20", "--processes", "1")
    with start_worker(redis_transport, "owners", *options, env=env) as worker:
        yield worker


def check_neighbours(worker, pid):
    """Jobs that are started now run, in that process, and have all that they use."""
    results = [worker.client.send("neighbour") for _ in range(3)]
    for result in results:
        *values, name, at = result.get(PATIENCE)
        assert (values, at) == (NEIGHBOUR, pid)
        assert name == f"apps.owners.neighbour[{result.id}]"
    assert worker.client.send("in_thread").get(PATIENCE) == pid


@pytest.mark.parametrize("what", SETTERS)
def test_neighbours(worker, what, tmp_path):
    """Neighbours run as ever, beside the body and after it; and signals are the parent's."""
    [pid] = worker.pool_pids()
    gate = tmp_path / "gate"
    result = worker.client.send("takes", what, str(gate))
    worker.wait_started(result)

    check_neighbours(worker, pid)
    gate.touch()
    assert result.get(PATIENCE) == pid

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pid, signum)
    check_neighbours(worker, pid)


def test_a_loop_inside_the_loop(worker):
    """asyncio knows the process's loop again after a body that has told it that none runs."""
    [pid] = worker.pool_pids()

    assert worker.client.send("runs_a_loop_inside").get(PATIENCE) == pid
    check_neighbours(worker, pid)


def test_a_body_turns_the_loop(worker):
    """The process lives on where a body has run what the loop was about to run."""
    [pid] = worker.pool_pids()

    results = [worker.client.send("turns_the_loop") for _ in range(5)]

    assert [result.get(PATIENCE) for result in results] == [pid] * 5
    check_neighbours(worker, pid)


def test_a_body_cancels_all(worker):
    """Each accepted job has an outcome when a body cancels whatever is on the loop."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        results = [worker.client.send("neighbour") for _ in range(10)]
        worker.client.send("cancels_all").get(PATIENCE)
        for result in results:
            result.get(PATIENCE, propagate=False)
    worker.wait_settled(*results)
