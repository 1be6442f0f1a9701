"""Processes are replaced without a dip in capacity and without a loss."""

import json
import os
import signal

import pytest
from worker import wait_for

TIMEOUT = 60


def settled(worker, count):
    """The pids, once *count* processes are up and no other one is left."""

    def pids():
        states = {pid: info["state"] for pid, info in worker.pool()["worker-processes"].items()}
        return list(states.values()) == ["up"] * count and [int(pid) for pid in states]

    return wait_for(pids, lambda: f"{count} processes: {worker.pool()}\n{worker.tail()}")


@pytest.mark.parametrize("task", ["pid", "pid_of_def"])
def test_max_tasks(transport, start_worker, task):
    """A process is replaced after so many tasks; no task is lost."""
    with start_worker(
        transport, "processes", "-c", 4, "--processes", 2, "--max-tasks-per-child", 10
    ) as worker:
        first = set(worker.pool_pids())

        pids = set()

        def all_replaced():
            """Whether two processes run tasks that are not the first ones."""
            results = [worker.client.send(task) for _ in range(20)]
            pids.update(result.get(timeout=TIMEOUT) for result in results)
            return len(pids - first) >= 2

        wait_for(all_replaced, worker.tail)
        assert "worker_max_tasks_per_child" in worker.log()
        wait_for(
            lambda: all(info["jobs-done"] < 10 for info in worker.up_processes().values()),
            worker.tail,
        )
        settled(worker, 2)
        wait_for(lambda: len(worker.family()) == 3, worker.family)


def test_replacement_comes_first(redis_transport, start_worker, tmp_path):
    """The old process goes when the new one is up, and its long task runs to its end."""
    gate = tmp_path / "gate"
    with start_worker(
        redis_transport, "processes", "-c", 4, "--processes", 1, "--max-tasks-per-child", 2
    ) as worker:
        [old] = worker.pool_pids()
        held = [worker.client.send("hold", str(gate)) for _ in range(2)]
        [new] = wait_for(lambda: set(worker.up_processes()) - {old}, worker.tail)

        assert set(worker.pool_pids()) > {old}
        assert worker.client.send("pid").get(timeout=TIMEOUT) == new
        gate.touch()
        assert [result.get(timeout=TIMEOUT) for result in held] == [old, old]
        wait_for(lambda: old not in worker.family(), worker.tail)


def test_max_memory(redis_transport, start_worker):
    """A process that uses too much memory is replaced after its tasks."""
    with start_worker(redis_transport, "processes", "-c", 2, "--processes", 1) as worker:
        [fresh] = [info["memory"] for info in worker.up_processes().values()]
    limit = fresh + 80_000
    with start_worker(
        redis_transport,
        *("processes", "-c", 2, "--processes", 1, "--max-memory-per-child", limit),
    ) as worker:
        [old] = worker.pool_pids()

        assert worker.client.send("hog", 10).get(timeout=TIMEOUT) == old
        assert worker.client.send("hog", 160).get(timeout=TIMEOUT) == old

        [new] = wait_for(lambda: set(settled(worker, 1)) - {old}, worker.tail)
        assert f"worker_max_memory_per_child is {limit}" in worker.log()
        assert worker.client.send("pid").get(timeout=TIMEOUT) == new


def test_max_memory_below_that_of_a_fresh_process(redis_transport, start_worker):
    """Such a limit is named, and replaces no process."""
    with start_worker(
        redis_transport, "processes", "-c", 2, "--processes", 2, "--max-memory-per-child", 1000
    ) as worker:
        pids = worker.pool_pids()
        worker.wait_log("worker_max_memory_per_child is 1000 KiB, and a worker process uses")

        results = [worker.client.send("hog", 1) for _ in range(10)]

        assert {result.get(timeout=TIMEOUT) for result in results} <= set(pids)
        assert settled(worker, 2) == pids
        assert worker.log().count("worker_max_memory_per_child is") == 1


def test_pool_restart(transport, start_worker, tmp_path):
    """`pool_restart` replaces all processes, one after the other, under running tasks."""
    gate = tmp_path / "gate"
    conf = json.dumps({"worker_pool_restarts": True})
    with start_worker(
        transport, "processes", "-c", 6, "--processes", 3, env={"PROCESSES_CONF": conf}
    ) as worker:
        old = set(worker.pool_pids())
        held = [worker.client.send("hold", str(gate)) for _ in range(3)]
        wait_for(lambda: len(worker.records("started")) == 3, worker.tail)

        replies = worker.client.app.control.broadcast(
            "pool_restart", reply=True, destination=[worker.hostname], timeout=30, limit=1
        )

        assert replies == [{worker.hostname: {"ok": "reload started"}}]
        fewest = []

        def replaced():
            up = set(worker.up_processes())
            fewest.append(len(up))
            return not up & old and len(up) == 3

        wait_for(replaced, worker.tail)
        assert min(fewest) == 3
        assert worker.client.send("pid").get(timeout=TIMEOUT) not in old
        gate.touch()
        assert {result.get(timeout=TIMEOUT) for result in held} == old
        assert not set(settled(worker, 3)) & old


def test_pool_restart_that_is_not_enabled(redis_transport, start_worker):
    """Without worker_pool_restarts it is refused, as by Celery, and nothing happens."""
    with start_worker(redis_transport, "processes", "-c", 2, "--processes", 1) as worker:
        pids = worker.pool_pids()

        [reply] = worker.client.app.control.broadcast(
            "pool_restart", reply=True, destination=[worker.hostname], timeout=30, limit=1
        )

        assert "Pool restarts not enabled" in reply[worker.hostname]["error"]
        assert worker.pool_pids() == pids


@pytest.mark.parametrize("session", [False, True])
def test_subprocess_left_by_a_replaced_process(redis_transport, start_worker, session):
    """What an orderly process leaves runs on, and the log names it."""
    with start_worker(
        redis_transport, "processes", "-c", 1, "--processes", 1, "--max-tasks-per-child", 1
    ) as worker:
        sleeper = worker.client.send("leave_sleeper", session).get(timeout=TIMEOUT)

        worker.wait_log(f"has left subprocesses that run on: {sleeper} (sleep)")

        assert sleeper in worker.family()
        os.kill(sleeper, signal.SIGKILL)
        wait_for(lambda: not os.path.exists(f"/proc/{sleeper}"), "reaped by the worker")


def test_numbers_of_processes(redis_transport, start_worker, tmp_path):
    """A new process takes the lowest free number: `%i` in log files does not count up."""
    options = ("-c", 4, "--processes", 2, "--max-tasks-per-child", 5)
    log = tmp_path / "w-%n-%i.log"
    worker = start_worker(redis_transport, "processes", *options, "-f", log)
    worker.log_path = tmp_path / f"w-{worker.hostname.partition('@')[0]}-0.log"
    with worker:
        pids = set()

        def many_replaced():
            results = [worker.client.send("pid") for _ in range(20)]
            pids.update(result.get(timeout=TIMEOUT) for result in results)
            return len(pids) >= 10

        wait_for(many_replaced, worker.tail)

    numbers = {int(path.stem.rpartition("-")[2]) for path in tmp_path.glob("w-*.log")}
    assert {0, 1, 2} <= numbers <= {0, 1, 2, 3}


def test_signal_before_each_process(redis_transport, start_worker):
    """`worker_before_create_process` is sent in the main process before each fork."""
    options = ("-c", 4, "--processes", 2, "--max-tasks-per-child", 5)
    with start_worker(redis_transport, "operations", *options) as worker:
        before = worker.records("worker_before_create_process")
        assert len(before) == 2
        results = [worker.client.send("ok") for _ in range(20)]
        for result in results:
            result.get(timeout=TIMEOUT)
        wait_for(lambda: len(worker.records("worker_process_init")) > 2, worker.tail)
        settled(worker, 2)

    before = worker.records("worker_before_create_process")
    assert len(before) == len(worker.records("worker_process_init"))
    assert {line["pid"] for line in before} == {worker.process.pid}
    assert {line["sender"] for line in before} == {"Pool"}
