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


@pytest.fixture(scope="module")
def worker_of_two(transport, start_worker):
    """A worker with two slots."""
    with start_worker(transport, "features", "-c", 2, "--processes", 2) as worker:
        yield worker


@pytest.mark.parametrize("how", ["expires", "revoke"])
@pytest.mark.parametrize("task", ["async_hold", "def_hold"])
def test_task_that_waits_for_a_slot_can_still_be_stopped(worker_of_two, tmp_path, how, task):
    """A task that expires or is revoked while it waits for a slot never starts."""
    worker = worker_of_two
    gate = tmp_path / "gate"

    def send(name, **options):
        return worker.client.send(task, str(gate), f"{how} {task} {name}", **options)

    def started(*names):
        held = [line["name"] for line in worker.records("hold")]
        return [name for name in names if f"{how} {task} {name}" in held]

    running = [send(name) for name in ("first", "second")]
    wait_for(lambda: len(started("first", "second")) == 2, "both slots are taken")
    expires = time.time() + 0.5
    waiting = [
        send(n, **({"expires": 0.5} if how == "expires" else {})) for n in ("third", "last")
    ]
    for result in waiting:
        worker.wait_log(f"{task}[{result.id}] received")
        if how == "revoke":
            result.revoke()
            worker.wait_log(f"flagged as revoked: {result.id}")
    if how == "expires":
        wait_for(lambda: time.time() > expires + 0.1, "time goes by")

    gate.touch()

    for result in running:
        result.get(timeout=TIMEOUT)
    for result in waiting:
        wait_for(lambda result=result: result.state == "REVOKED", worker.tail)
    wait_for(lambda: worker.slots_in_use() == 0, worker.pool)
    assert started("third", "last") == []
