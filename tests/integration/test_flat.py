"""What the worker holds does not grow: descriptors, threads, memory, processes.

``ASYNCPOOL_TEST_TASKS=200000`` runs a long test of many tasks instead of a quick one.
"""

import os
import re
from pathlib import Path

import pytest
from worker import wait_for

TIMEOUT = 60
TASKS = int(os.environ.get("ASYNCPOOL_TEST_TASKS", "4000"))
BATCH = 500

#: KiB by which a process may grow while it is watched: caches fill, the heap
#: fragments. A record or descriptor left for each task or recycle would be more.
MEMORY_SLACK = 12_000


def held_by(pid):
    """Descriptors, threads and resident KiB of process *pid*."""
    status = Path(f"/proc/{pid}/status").read_text()
    return {
        "fds": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(re.search(r"Threads:\s+(\d+)", status)[1]),
        "memory": int(re.search(r"VmRSS:\s+(\d+)", status)[1]),
    }


#: Threads of a worker process that may still be missing when the watch begins: they
#: start as they are needed, and each has a connection to the result backend.
LATE_THREADS = 42


#: Connections of the main process to Redis that may still be missing then: one for
#: each list of a queue that was never seen empty, and one for the messages of lost workers.
LATE_CONNECTIONS = 5


def assert_flat(before, after, late=0):
    assert after["fds"] <= before["fds"] + late, (before, after)
    assert after["threads"] <= before["threads"] + late, (before, after)
    assert after["memory"] <= before["memory"] + MEMORY_SLACK, (before, after)


def run_batch(worker, task, count):
    for result in [worker.client.send(task) for _ in range(count)]:
        result.get(timeout=TIMEOUT)
        result.forget()


def is_settled(worker):
    """Two processes, both up, nothing in them."""
    infos = worker.pool()["worker-processes"].values()
    return [(i["state"], i["slots-in-use"]) for i in infos] == [("up", 0)] * 2


def recycles(worker):
    return worker.log().count("worker_max_tasks_per_child")


@pytest.mark.parametrize("name", ["redis", "rabbitmq"])
def test_recycles(request, start_worker, tmp_path, name):
    """A hundred recycles leave nothing behind in the main process."""
    from transports import make_transport

    transport = make_transport(name, request, tmp_path)
    with start_worker(
        transport, "processes", "-c", 4, "--processes", 2, "--max-tasks-per-child", 4
    ) as worker:

        def recycle(times):
            while recycles(worker) < times:
                run_batch(worker, "pid", 8)
            wait_for(lambda: is_settled(worker), worker.tail)

        recycle(15)
        before = held_by(worker.process.pid)

        recycle(115)

        assert_flat(before, held_by(worker.process.pid), late=LATE_CONNECTIONS)
        assert len(worker.family()) == 3


@pytest.mark.parametrize("task", ["pid", "pid_of_def"])
def test_many_tasks(redis_transport, start_worker, task):
    """Thousands of tasks leave nothing behind in the main process and in those that ran them."""
    with start_worker(redis_transport, "processes", "-c", 100, "--processes", 2) as worker:
        for _ in range(4):
            run_batch(worker, task, BATCH)
        wait_for(lambda: is_settled(worker), worker.tail)
        pids = [worker.process.pid, *worker.pool_pids()]
        before = {pid: held_by(pid) for pid in pids}

        for _ in range(TASKS // BATCH):
            run_batch(worker, task, BATCH)
        wait_for(lambda: is_settled(worker), worker.tail)

        assert [worker.process.pid, *worker.pool_pids()] == pids
        assert_flat(before[pids[0]], held_by(pids[0]), late=LATE_CONNECTIONS)
        for pid in pids[1:]:
            assert_flat(before[pid], held_by(pid), late=LATE_THREADS)
