"""A process that dies is replaced, and its jobs are settled."""

import os
import signal

import pytest
from billiard.exceptions import WorkerLostError
from worker import wait_for

TIMEOUT = 60


@pytest.fixture(scope="module", params=("redis", "rabbitmq"))
def hub_transport(request, tmp_path_factory):
    """The transports that Celery reads with a hub."""
    from transports import make_transport

    return make_transport(request.param, request, tmp_path_factory.mktemp(request.param))


def wait_replaced(worker, dead, count=2):
    wait_for(
        lambda: len(worker.up_processes()) == count and dead not in worker.up_processes(),
        lambda: f"a replacement: {worker.pool()}\n{worker.tail()}",
    )


def test_accepted_jobs_are_lost(transport, start_worker, tmp_path):
    """kill -9 of one of two processes with 200 jobs: its jobs fail, the others end well."""
    gate = tmp_path / "gate"
    with start_worker(transport, "flight", "-c", 200, "--processes", 2) as worker:
        results = [worker.client.send("wait", str(gate), n) for n in range(200)]
        wait_for(lambda: len(worker.records("started")) == 200, worker.pool)
        victim = worker.pool_pids()[0]

        os.kill(victim, signal.SIGKILL)

        wait_replaced(worker, victim)
        gate.touch()
        lost = [
            r for r in results if isinstance(r.get(timeout=TIMEOUT, propagate=False), Exception)
        ]
        assert len(lost) == 100
        for result in lost:
            with pytest.raises(WorkerLostError, match=r"signal 9 \(SIGKILL\)"):
                result.get(timeout=TIMEOUT)
        assert worker.client.send("pid").get(timeout=TIMEOUT) in worker.pool_pids()
        wait_for(lambda: worker.slots_in_use() == 0, worker.pool)


def test_late_jobs_are_redelivered(hub_transport, start_worker, tmp_path):
    """With acks_late and reject_on_worker_lost the jobs of a dead process run again."""
    gate = tmp_path / "gate"
    with start_worker(hub_transport, "flight", "-c", 200, "--processes", 2) as worker:
        results = [worker.client.send("wait_late", str(gate), n) for n in range(200)]
        wait_for(lambda: len(worker.records("started")) == 200, worker.pool)
        victim = worker.pool_pids()[0]

        os.kill(victim, signal.SIGKILL)

        wait_replaced(worker, victim)
        wait_for(lambda: len(worker.records("started")) == 300, worker.tail)
        gate.touch()
        pids = {result.get(timeout=TIMEOUT) for result in results}
        assert victim not in pids
        assert len(worker.records("started")) == 300


def test_unaccepted_jobs_run_elsewhere(transport, start_worker, tmp_path):
    """Jobs that were sent to a process which dies before it accepts them run elsewhere, once."""
    gate = tmp_path / "gate"
    with start_worker(transport, "flight", "-c", 40, "--processes", 2) as worker:
        victim, other = worker.pool_pids()
        os.kill(victim, signal.SIGSTOP)
        results = [worker.client.send("wait", str(gate), n) for n in range(20)]
        wait_for(lambda: worker.slots_in_use() == 20, worker.pool)
        wait_for(lambda: len(worker.records("started")) == 10, worker.tail)

        os.kill(victim, signal.SIGKILL)

        wait_for(lambda: len(worker.records("started")) == 20, worker.tail)
        gate.touch()
        pids = {result.get(timeout=TIMEOUT) for result in results}
        assert victim not in pids
        assert other in pids
        assert sorted(line["name"] for line in worker.records("started")) == list(range(20))


def test_task_that_kills_its_process(transport, start_worker):
    """The task that did it fails with an error that names the signal; the worker goes on."""
    with start_worker(transport, "features", "-c", 4, "--processes", 2) as worker:
        before = worker.pool_pids()
        result = worker.client.send("kill_my_process")

        with pytest.raises(WorkerLostError, match="SIGKILL"):
            result.get(timeout=TIMEOUT)

        wait_for(lambda: len(worker.up_processes()) == 2, worker.pool)
        assert len(set(before) & set(worker.pool_pids())) == 1
        assert "perhaps out of memory" in worker.log()


def test_subprocesses_of_a_dead_process(redis_transport, start_worker, tmp_path):
    """What a dead process leaves behind is killed, detached sessions included."""
    with start_worker(redis_transport, "flight", "-c", 2, "--processes", 1) as worker:
        result = worker.client.send("spawn_sleeper", str(tmp_path / "gate"))
        wait_for(lambda: len(worker.records("sleeper")) == 2, worker.tail)
        sleepers = [line["sleeper"] for line in worker.records("sleeper")]
        assert set(sleepers) <= set(worker.family())

        os.kill(worker.pool_pids()[0], signal.SIGKILL)

        with pytest.raises(WorkerLostError):
            result.get(timeout=TIMEOUT)
        wait_for(lambda: not set(sleepers) & set(worker.family()), worker.family)


def test_process_that_cannot_start(redis_transport, start_worker):
    """When processes die at their start again and again, the worker ends and says why."""
    worker = start_worker(redis_transport, "broken", "-c", 2, "--processes", 2)
    try:
        worker.start()

        assert worker.wait_exit() == 1

        assert "could not start; giving up" in worker.log()
        assert "no licence for this machine" in worker.log()
        worker.stop()  # nothing is left
    finally:
        worker.kill_everything()
        worker.client.close()
