"""While a warm shutdown waits, acks reach RabbitMQ and heartbeats go on."""

import signal
import time

import pytest
from worker import wait_for

TIMEOUT = 60


@pytest.fixture
def count_messages(rabbitmq_server):
    """Count the messages of a queue, those that a worker has not acknowledged included."""

    def count(queue):
        listing = rabbitmq_server.ctl("-q", "list_queues", "name", "messages")
        return dict(line.split("\t") for line in listing.splitlines()).get(queue)

    return count


def test_acks_leave_during_the_drain(new_transport, start_worker, count_messages, tmp_path):
    """What ends during a warm shutdown is acknowledged at once, as a later kill -9 shows."""
    gates = [tmp_path / "gate 0", tmp_path / "gate 1"]
    transport = new_transport("rabbitmq")
    env = {"LIMITS_CONF": "task_acks_late=True"}
    with start_worker(transport, "limits", "-c", 4, "--processes", 2, env=env) as worker:
        results = [worker.client.send("hold", str(gate)) for gate in gates]
        worker.wait_started(*results)
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_log("waiting for 2 tasks")

        gates[0].touch()
        assert results[0].get(timeout=TIMEOUT) == "held"
        wait_for(lambda: count_messages(transport.queue) == "1", "the ack has arrived")
        worker.process.kill()
        worker.wait_exit()

        worker.restart()
        worker.wait_started(results[1], times=2)
        gates[1].touch()
        assert results[1].get(timeout=TIMEOUT) == "held"
        assert worker.count("started", results[0]) == 1


def test_heartbeats_go_on_during_the_drain(new_transport, start_worker, count_messages, tmp_path):
    """A drain that is longer than the broker's patience loses no ack and no result."""
    gate = tmp_path / "gate"
    transport = new_transport("rabbitmq")
    env = {"LIMITS_CONF": "broker_heartbeat=2; task_acks_late=True"}
    with start_worker(transport, "limits", "-c", 4, "--processes", 2, env=env) as worker:
        results = [worker.client.send("hold", str(gate)) for _ in range(3)]
        worker.wait_started(*results)
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_log("waiting for 3 tasks")

        time.sleep(7)  # RabbitMQ closes a connection that is silent for two heartbeats
        gate.touch()

        assert worker.wait_exit() == 0
        assert [result.get(timeout=TIMEOUT) for result in results] == ["held"] * 3
        assert count_messages(transport.queue) == "0"
        assert "connection broke" not in worker.log()
