"""Celery's signals of the worker, its processes and its tasks."""

import signal

import pytest
from celery import signals
from worker import wait_for

TIMEOUT = 60


def pids(worker, what):
    return sorted(line["pid"] for line in worker.records(what))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGQUIT])
@pytest.mark.parametrize("name", ["redis", "filesystem"])
def test_signals_of_a_worker(new_transport, start_worker, name, signum):
    """Each is sent once, in the main process or in each worker process, in Celery's order."""
    with start_worker(new_transport(name), "operations", "-c", 4, "--processes", 2) as worker:
        main, children = [worker.process.pid], sorted(worker.pool_pids())
        assert pids(worker, "worker_init") == pids(worker, "worker_ready") == main
        assert pids(worker, "worker_process_init") == children
        assert pids(worker, "worker_process_shutdown") == pids(worker, "worker_shutdown") == []

        worker.process.send_signal(signum)
        worker.wait_exit()

        assert pids(worker, "worker_process_shutdown") == children
        # Celery sends it after a warm shutdown only.
        assert pids(worker, "worker_shutdown") == (main if signum == signal.SIGTERM else [])
        order = [line["what"] for line in worker.records()]
        assert order[0] == "worker_init"
        assert order[-1].endswith("_shutdown")


@pytest.mark.skipif(
    "runtime" not in signals.task_success.providing_args,
    reason="task_success tells no runtime before Celery 5.7",
)
def test_runtime_of_a_success(redis_transport, start_worker):
    """task_success tells how many seconds the task took, its waiting included."""
    with start_worker(redis_transport, "operations", "-c", 4, "--processes", 2) as worker:
        result = worker.client.send("nap", 0.2)
        result.get(timeout=TIMEOUT)

        wait_for(lambda: worker.count("task_success", result), worker.tail)
        [line] = worker.records("task_success")
        assert line["runtime"] >= 0.2
