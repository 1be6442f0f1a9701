"""Slots come and go while the worker runs; processes and prefetch follow."""

import json

import pytest
from worker import wait_for

TIMEOUT = 60


def control(worker, command, **arguments):
    [reply] = worker.client.app.control.broadcast(
        command,
        arguments=arguments,
        reply=True,
        destination=[worker.hostname],
        timeout=30,
        limit=1,
    )
    return reply[worker.hostname]


def running(worker):
    """Tasks that have started and not ended, by the tasks' own record."""
    return len(worker.records("started")) - len(worker.records("ended"))


def most_at_once(worker, since):
    """The most tasks that ran at the same time, after the first *since* lines."""
    now = most = 0
    for line in worker.records()[since:]:
        now += {"started": 1, "ended": -1}[line["what"]]
        most = max(most, now)
    return most


def processes_are(worker, count):
    states = [info["state"] for info in worker.pool()["worker-processes"].values()]
    return states == ["up"] * count


def test_grow_and_shrink(transport, start_worker, tmp_path):
    """More slots run more tasks in more processes; fewer let what runs end, and then fewer run."""
    gate, second_gate = tmp_path / "gate", tmp_path / "second"
    with start_worker(transport, "processes", "-c", 2, "--processes", 3) as worker:
        assert worker.stats()["prefetch_count"] == 8
        assert processes_are(worker, 2)
        results = [worker.client.send("hold", str(gate), n) for n in range(6)]
        wait_for(lambda: running(worker) == 2, worker.tail)

        assert control(worker, "pool_grow", n=2) == {"ok": "pool will grow"}

        wait_for(lambda: running(worker) == 4, worker.tail)
        wait_for(lambda: processes_are(worker, 3), worker.tail)
        assert worker.pool()["max-concurrency"] == 4
        wait_for(lambda: worker.stats()["prefetch_count"] == 16, worker.stats)

        assert control(worker, "pool_shrink", n=3) == {"ok": "pool will shrink"}

        wait_for(lambda: len(worker.up_processes()) == 1, worker.tail)
        wait_for(lambda: worker.stats()["prefetch_count"] == 4, worker.stats)
        assert running(worker) == 4
        gate.touch()
        assert all(result.get(timeout=TIMEOUT) for result in results)
        wait_for(lambda: processes_are(worker, 1), worker.tail)
        since = len(worker.records())
        second_gate.touch()
        results = [worker.client.send("hold", str(second_gate), n) for n in range(8)]
        assert len({result.get(timeout=TIMEOUT) for result in results}) == 1
        assert most_at_once(worker, since) == 1

        control(worker, "pool_grow", n=1)
        second_gate.unlink()
        since = len(worker.records())
        results = [worker.client.send("hold", str(second_gate), n) for n in range(6)]
        wait_for(lambda: running(worker) == 2, worker.tail)
        second_gate.touch()
        assert all(result.get(timeout=TIMEOUT) for result in results)
        assert most_at_once(worker, since) == 2


@pytest.mark.parametrize(
    ("command", "n"), [("pool_shrink", 3), ("pool_shrink", -1), ("pool_grow", -1)]
)
def test_impossible_sizes(redis_transport, start_worker, command, n):
    """A size that cannot be is refused with a reason, and nothing changes."""
    with start_worker(redis_transport, "processes", "-c", 2, "--processes", 1) as worker:
        pids = worker.pool_pids()

        reply = control(worker, command, n=n)

        expected = "there are 2" if n > 0 else "at least 0"
        assert expected in reply["error"]
        assert worker.pool()["max-concurrency"] == 2
        assert worker.pool_pids() == pids


def test_autoscale(transport, start_worker, tmp_path):
    """Slots and processes follow the load, up and down; nothing is lost."""
    gate = tmp_path / "gate"
    with start_worker(
        transport,
        *("processes", "--autoscale=6,1", "--processes", 3),
        env={"AUTOSCALE_KEEPALIVE": "1"},
    ) as worker:
        assert worker.pool()["max-concurrency"] == 1
        results = [worker.client.send("hold", str(gate), n) for n in range(12)]

        wait_for(lambda: running(worker) == 6, worker.tail)
        wait_for(lambda: processes_are(worker, 3), worker.tail)
        assert worker.stats()["autoscaler"]["current"] == 6
        gate.touch()

        assert all(result.get(timeout=TIMEOUT) for result in results)
        wait_for(lambda: worker.pool()["max-concurrency"] == 1, worker.tail)
        wait_for(lambda: processes_are(worker, 1), worker.tail)
        assert most_at_once(worker, 0) == 6


def test_autoscale_from_nothing(redis_transport, start_worker):
    """With a minimum of 0 an idle worker has no process at all, until a task comes."""
    with start_worker(
        redis_transport,
        *("processes", "--autoscale=4,0", "--processes", 2),
        env={"AUTOSCALE_KEEPALIVE": "1"},
    ) as worker:
        assert worker.pool_pids() == []

        results = [worker.client.send("pid") for _ in range(20)]

        assert all(result.get(timeout=TIMEOUT) for result in results)
        wait_for(lambda: worker.pool_pids() == [], worker.tail)


def test_scaling_while_processes_are_replaced(redis_transport, start_worker):
    """Growing, shrinking and recycling at the same time lose nothing."""
    conf = json.dumps({"worker_pool_restarts": True})
    with start_worker(
        redis_transport,
        *("processes", "-c", 4, "--processes", 4, "--max-tasks-per-child", 20),
        env={"PROCESSES_CONF": conf},
    ) as worker:
        results = []
        for number in range(12):
            results += [worker.client.send("pid") for _ in range(25)]
            control(worker, "pool_shrink" if number % 2 else "pool_grow", n=1 + number % 3)
            if number % 4 == 0:
                control(worker, "pool_restart")

        assert all(result.get(timeout=TIMEOUT) for result in results)
        slots = worker.pool()["max-concurrency"]
        wait_for(lambda: processes_are(worker, min(slots, 4)), worker.tail)
        wait_for(lambda: worker.slots_in_use() == 0, worker.tail)
