"""As many tasks as the worker has slots really run at once, and none blocks the others."""

import time
import uuid
from collections import Counter

import pytest
from celery import group
from transports import redis_database
from worker import wait_for

TIMEOUT = 120


def test_two_thousand_at_once(transport, start_worker, redis, request):
    """With -c 2000 --processes 2, 2,000 tasks are in flight, half in each process."""
    key = f"flight-{uuid.uuid4().hex}"
    env = {"FLIGHT_REDIS": redis_database(request, 2)}
    with start_worker(transport, "flight", "-c", 2000, "--processes", 2, env=env) as worker:
        tasks = group(worker.client.s("all_start", key, 2000) for _ in range(2000))

        pids = Counter(tasks.apply_async().get(timeout=TIMEOUT))

        assert sorted(pids.values()) == [1000, 1000]
        assert set(pids) == set(worker.pool_pids())


def test_slots_bound_what_runs(transport, start_worker, tmp_path):
    """No more tasks than slots run at once, also when they do not divide evenly."""
    gate = tmp_path / "gate"
    with start_worker(transport, "flight", "-c", 3, "--processes", 2) as worker:
        results = [worker.client.send("wait", str(gate), name) for name in range(9)]
        wait_for(lambda: len(worker.records("started")) == 3, worker.pool)
        last = worker.client.send("pid")

        assert worker.slots_in_use() == 3
        assert len(worker.records("started")) == 3

        gate.touch()
        assert len([result.get(timeout=TIMEOUT) for result in results]) == 9
        last.get(timeout=TIMEOUT)


def test_slow_result_backend(redis_transport, start_worker, tmp_path):
    """While a backend takes no result, bodies run on: its writes are in threads."""
    transport = redis_transport
    line, gate = tmp_path / "line", tmp_path / "gate"
    env = {
        "ASYNCPOOL_TEST_BACKEND": f"apps.slow_backend:SlowBackend+{transport.backend}",
        "SLOW_GATE": str(line),
    }
    with start_worker(transport, "flight", "-c", 600, "--processes", 1, env=env) as worker:
        results = [worker.client.send("pid") for _ in range(100)]
        wait_for(lambda: worker.records("write"), worker.tail)

        results += [worker.client.send("wait", str(gate), n) for n in range(400)]
        wait_for(lambda: len(worker.records("started")) == 400, worker.tail)
        gate.touch()
        results.append(worker.client.send("wait", str(gate), "the last"))
        wait_for(lambda: worker.records("ended", name="the last"), worker.tail)
        assert not any(result.ready() for result in results)

        line.touch()
        assert len([result.get(timeout=TIMEOUT) for result in results]) == 501
        assert len(worker.records("write")) == 501
        assert not any(write["main"] for write in worker.records("write"))
        wait_for(lambda: worker.slots_in_use() == 0, worker.pool)


@pytest.mark.parametrize("how", ["expires", "revoke"])
@pytest.mark.parametrize("task", ["async_hold", "def_hold"])
def test_task_that_waits_for_a_slot_can_still_be_stopped(
    transport, start_worker, tmp_path, how, task
):
    """A task that expires or is revoked while it waits for a slot never starts."""
    gate = tmp_path / "gate"
    with start_worker(transport, "features", "-c", 2, "--processes", 2) as worker:
        running = [worker.client.send(task, str(gate), f"running {n}") for n in range(2)]
        wait_for(lambda: len(worker.records("hold")) == 2, "both slots are taken")
        options = {"expires": 1} if how == "expires" else {}
        waiting = [worker.client.send(task, str(gate), f"waiting {n}", **options) for n in (1, 2)]
        wait_for(lambda: worker.log().count(f"{task}[") >= 4, worker.tail)
        if how == "expires":
            wait_for_expiry(worker, waiting)
        else:
            for result in waiting:
                result.revoke()
            wait_for(lambda: worker.log().count("flagged as revoked") == 2, worker.tail)

        gate.touch()

        assert [result.get(timeout=TIMEOUT) for result in running] == ["running 0", "running 1"]
        for result in waiting:
            wait_for(lambda result=result: result.state == "REVOKED", worker.tail)
        assert len(worker.records("hold")) == 2


def wait_for_expiry(worker, waiting):
    """Wait until the tasks' time is over by the worker's clock, which is ours."""
    over = time.time() + 1.1
    wait_for(lambda: time.time() > over, "time goes by")
