"""A task that takes its process down again and again ends, and its neighbours live."""

import json
import uuid

import pytest
from billiard.exceptions import WorkerLostError
from kombu import Queue
from worker import wait_for

TIMEOUT = 120


@pytest.fixture(scope="module", params=("redis", "rabbitmq"))
def hub_transport(request, tmp_path_factory):
    """The transports that deliver again."""
    from transports import make_transport

    return make_transport(request.param, request, tmp_path_factory.mktemp(request.param))


def test_poison_task(hub_transport, start_worker, tmp_path):
    """It is failed for good at its third crash; tasks beside it end well."""
    gate = tmp_path / "gate"
    with start_worker(hub_transport, "processes", "-c", 20, "--processes", 2) as worker:
        neighbours = [worker.client.send("hold_late", str(gate), n) for n in range(10)]
        wait_for(lambda: len(worker.records("started")) == 10, worker.tail)
        poison = worker.client.send("poison")
        wait_for(lambda: len(worker.records("poisoned")) >= 2, worker.tail)
        gate.touch()

        with pytest.raises(WorkerLostError, match=r"crash number 3 \(asyncpool_max_crashes\)"):
            poison.get(timeout=TIMEOUT)

        assert all(result.get(timeout=TIMEOUT) for result in neighbours)
        assert len(worker.records("poisoned")) == 3
        assert {line["name"] for line in worker.records("ended")} == set(range(10))
        wait_for(lambda: len(worker.up_processes()) == 2, worker.tail)
        wait_for(lambda: worker.slots_in_use() == 0, worker.tail)
        assert worker.client.send("pid").get(timeout=TIMEOUT) in worker.pool_pids()


def test_poison_task_goes_to_the_dead_letters(request, start_worker, tmp_path):
    """On RabbitMQ its message is rejected without requeue; the budget is a setting."""
    from transports import make_transport

    transport = make_transport("rabbitmq", request, tmp_path)
    letters = f"letters-{uuid.uuid4().hex[:8]}"
    rabbitmq = request.getfixturevalue("rabbitmq_server")
    policy = {"dead-letter-exchange": "", "dead-letter-routing-key": letters}
    rabbitmq.ctl("set_policy", letters, f"^{transport.queue}$", json.dumps(policy))
    with start_worker(
        transport,
        *("processes", "-c", 4, "--processes", 2),
        env={"PROCESSES_CONF": json.dumps({"asyncpool_max_crashes": 2})},
    ) as worker:
        with worker.client.app.connection_for_write() as connection:
            queue = Queue(letters)(connection)
            queue.declare()

            poison = worker.client.send("poison")

            with pytest.raises(WorkerLostError, match="crash number 2"):
                poison.get(timeout=TIMEOUT)
            letter = wait_for(lambda: queue.get(no_ack=True), "a dead letter")
            queue.delete()
        assert letter.headers["id"] == poison.id
        assert len(worker.records("poisoned")) == 2
