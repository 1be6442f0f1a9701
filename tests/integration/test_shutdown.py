"""A warm shutdown waits for what runs."""

import os
import signal

import pytest
from worker import wait_for

TIMEOUT = 60


def test_warm_shutdown_waits(transport, start_worker, tmp_path):
    """SIGTERM: running tasks end, their results are stored, and the worker exits with 0."""
    gate = tmp_path / "gate"
    with start_worker(transport, "flight", "-c", 20, "--processes", 2) as worker:
        results = [worker.client.send("wait", str(gate), n) for n in range(10)]
        wait_for(lambda: len(worker.records("started")) == 10, worker.pool)

        worker.process.send_signal(signal.SIGTERM)
        worker.wait_log("waiting for 10 tasks")
        gate.touch()

        assert worker.wait_exit() == 0
        assert all(result.get(timeout=TIMEOUT) for result in results)


def test_children_ignore_sigterm(redis_transport, start_worker, tmp_path):
    """SIGTERM to the whole family, as systemd sends it, is a warm shutdown too."""
    gate = tmp_path / "gate"
    with start_worker(redis_transport, "flight", "-c", 20, "--processes", 2) as worker:
        results = [worker.client.send("wait", str(gate), n) for n in range(10)]
        wait_for(lambda: len(worker.records("started")) == 10, worker.pool)

        for pid in worker.family():
            os.kill(pid, signal.SIGTERM)
        worker.wait_log("waiting for 10 tasks")
        gate.touch()

        assert worker.wait_exit() == 0
        assert all(result.get(timeout=TIMEOUT) for result in results)


@pytest.mark.parametrize("how", ["quit", "kill"])
def test_nothing_outlives_the_worker(transport, start_worker, tmp_path, how):
    """After a cold shutdown, and after kill -9 of the main process, nothing is left."""
    with start_worker(transport, "flight", "-c", 4, "--processes", 2) as worker:
        worker.client.send("spawn_sleeper", str(tmp_path / "gate"))
        wait_for(lambda: len(worker.records("sleeper")) == 2, worker.tail)
        sleepers = {line["sleeper"] for line in worker.records("sleeper")}

        worker.process.send_signal(signal.SIGQUIT if how == "quit" else signal.SIGKILL)
        worker.wait_exit()

        wait_for(lambda: not set(worker.family()) - sleepers, worker.family)
        for pid in sleepers & set(worker.family()):
            os.kill(pid, signal.SIGKILL)


def test_worker_process_signals(redis_transport, start_worker):
    """worker_process_init and worker_process_shutdown are sent once in each process."""
    with start_worker(redis_transport, "lifecycle", "-c", 4, "--processes", 2) as worker:
        pids = worker.pool_pids()

        worker.process.send_signal(signal.SIGTERM)

        assert worker.wait_exit() == 0
        for what in ("init", "shutdown"):
            assert sorted(line["pid"] for line in worker.records(what)) == sorted(pids)
        assert all(line["loop"] is False for line in worker.records("init"))
        assert all(line["exitcode"] == 0 for line in worker.records("shutdown"))
