"""Spawned processes (worker_pool_start_method) are recycled, scaled and cleared up like forks."""

import json
import os
import signal

import celery
import pytest
from billiard.exceptions import WorkerLostError
from celery.exceptions import TaskRevokedError, TimeLimitExceeded
from worker import wait_for

TIMEOUT = 120

pytestmark = pytest.mark.skipif(
    celery.VERSION < (5, 7), reason="worker_pool_start_method is new in Celery 5.7"
)


@pytest.fixture
def spawning(redis_transport, start_worker):
    """Start a worker whose processes are fresh interpreters."""

    def start(module, *args):
        conf = {"worker_pool_start_method": "spawn", "worker_proc_alive_timeout": 60}
        env = {"PROCESSES_CONF": json.dumps({**conf, "worker_pool_restarts": True})}
        return start_worker(redis_transport, module, *args, env=env)

    return start


def all_up(worker, count):
    states = [info["state"] for info in worker.pool()["worker-processes"].values()]
    return states == ["up"] * count


def test_recycle_scale_and_restart(spawning):
    """Processes come and go; no task is lost."""
    with spawning("processes", "-c", 2, "--processes", 2, "--max-tasks-per-child", 5) as worker:
        first = set(worker.pool_pids())
        control = worker.client.app.control
        where = {"destination": [worker.hostname], "reply": True, "timeout": 30, "limit": 1}

        results = [worker.client.send("pid") for _ in range(20)]
        assert control.broadcast("pool_restart", **where)
        assert control.broadcast("pool_shrink", arguments={"n": 1}, **where)
        results += [worker.client.send("pid") for _ in range(20)]

        assert all(result.get(timeout=TIMEOUT) for result in results)
        wait_for(lambda: all_up(worker, 1), worker.tail)
        wait_for(lambda: not set(worker.pool_pids()) & first, worker.tail)
        [second] = worker.pool_pids()
        while worker.client.send("pid").get(timeout=TIMEOUT) == second:
            continue  # until the next one has taken over
        wait_for(lambda: second not in worker.family(), worker.tail)


def test_crash(spawning, tmp_path):
    """Accepted jobs are lost with their process, subprocesses go, and a new process serves."""
    with spawning("processes", "-c", 2, "--processes", 1) as worker:
        sleeper = worker.client.send("leave_sleeper", True).get(timeout=TIMEOUT)
        result = worker.client.send("hold", str(tmp_path / "gate"))
        wait_for(lambda: worker.records("started"), worker.tail)

        os.kill(worker.pool_pids()[0], signal.SIGKILL)

        with pytest.raises(WorkerLostError, match="SIGKILL"):
            result.get(timeout=TIMEOUT)
        wait_for(lambda: all_up(worker, 1), worker.tail)
        assert worker.client.send("pid").get(timeout=TIMEOUT) in worker.pool_pids()
        assert sleeper not in worker.family()


def test_main_process_is_killed(spawning):
    """Nothing outlives the main process."""
    with spawning("processes", "-c", 2, "--processes", 2) as worker:
        sleeper = worker.client.send("leave_sleeper", True).get(timeout=TIMEOUT)
        assert sleeper in worker.family()

        worker.process.send_signal(signal.SIGKILL)
        worker.wait_exit()

        wait_for(lambda: not worker.family(), worker.family)


def test_outcomes_of_tasks(redis_transport, start_worker):
    """Tasks of a module that only the settings name run; limits, revokes and SIGQUIT end tasks."""
    conf = "worker_pool_start_method='spawn'; worker_proc_alive_timeout=60"
    env = {"OPERATIONS_CONF": f"{conf}; imports=['apps.imported']"}
    with start_worker(redis_transport, "operations", "-c", 4, "--processes", 1, env=env) as worker:
        [pid] = worker.pool_pids()
        send = worker.client.app.send_task
        shared = [
            send(f"apps.imported.{name}", queue=worker.transport.queue)
            for name in ("shared_async", "shared_def")
        ]
        limited = worker.client.send("overrun", time_limit=0.5)
        revoked = worker.client.send("overrun")
        worker.wait_started(limited, revoked)

        revoked.revoke(terminate=True)

        with pytest.raises(TimeLimitExceeded):
            limited.get(timeout=TIMEOUT)
        with pytest.raises(TaskRevokedError):
            revoked.get(timeout=TIMEOUT)
        assert [result.get(timeout=TIMEOUT) for result in shared] == [pid, pid]
        worker.wait_started(worker.client.send("overrun"))
        worker.process.send_signal(signal.SIGQUIT)
        worker.wait_exit()
