"""kill -9 of one of two processes, each with a hundred tasks."""

import os
import signal

import pytest
from ending import Ending, ending_well
from worker import wait_for


@pytest.fixture(scope="module")
def worker(transport, start_worker):
    worker = start_worker(transport, "chaos", "-E", "-c", 200, "--processes", 2)
    with ending_well(worker):
        yield worker


def kill_one(worker):
    """Kill the first process; return the ids of the tasks that it was running."""
    victim = worker.pool_pids()[0]
    ended = {line["id"] for line in worker.records("ended")}
    running = {line["id"] for line in worker.records("started", pid=victim)} - ended

    os.kill(victim, signal.SIGKILL)

    wait_for(lambda: victim not in worker.pool_pids(), worker.tail)
    return running


def test_early_acks(worker, tmp_path):
    """Its tasks fail with an error that names the signal; the others end well."""
    with Ending(worker, tmp_path) as ending:
        gate = ending.gate()
        results = [worker.client.send("hold", str(gate)) for _ in range(200)]
        ending.wait_started(*results)

        running = kill_one(worker)
        gate.touch()

        assert len(running) == 100
        lost = [result for result in results if result.id in running]
        ending.check(lost=lost, ended=[result for result in results if result not in lost])
        assert all("signal 9 (SIGKILL)" in str(result.result) for result in lost)


def test_late_acks(worker, tmp_path):
    """Its tasks are redelivered; each ends well, once."""
    with Ending(worker, tmp_path) as ending:
        gate = ending.gate()
        results = [worker.client.send("hold_late", str(gate)) for _ in range(200)]
        ending.wait_started(*results)

        running = kill_one(worker)
        ending.wait_started(*(result for result in results if result.id in running), times=2)
        gate.touch()

        assert len(running) == 100
        ending.check(ended=results)
        assert ending.runs(*results) == 300
