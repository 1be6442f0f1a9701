"""Another worker, or another broker, takes over."""

import re

import pytest
from transports import redis_database
from worker import Transport, wait_for

from tests.servers import RedisServer

TIMEOUT = 60
OPTIONS = ("-c", 4, "--processes", 2)


@pytest.fixture
def start(new_transport, start_worker):
    """Start workers that act on one queue of RabbitMQ, and ack late."""
    transport = new_transport("rabbitmq")
    env = {"LIMITS_CONF": "task_acks_late=True"}
    return lambda: start_worker(transport, "limits", *OPTIONS, env=env)


def test_other_worker_takes_over(start, tmp_path):
    """A task that runs when its worker is killed is run by the other one, once."""
    gate = tmp_path / "gate"
    with start() as one, start() as other:
        result = one.client.send("hold", str(gate))
        wait_for(lambda: one.count("started", result) or other.count("started", result), one.tail)
        victim, heir = (one, other) if one.count("started", result) else (other, one)

        victim.process.kill()
        victim.wait_exit()

        heir.wait_started(result)
        gate.touch()
        assert result.get(timeout=TIMEOUT) == "held"
        assert heir.count("started", result) == 1
        assert heir.client.send("neighbour", 0).get(timeout=TIMEOUT) in heir.pool_pids()


def test_restarted_worker_takes_over(start):
    """When all are killed, one that is started again runs what was sent meanwhile."""
    with start() as one, start() as other:
        for worker in (one, other):
            worker.process.kill()
            worker.wait_exit()
        result = one.client.send("neighbour", 0)

        one.restart()

        assert result.get(timeout=TIMEOUT) in one.pool_pids()


@pytest.fixture
def brokers(request):
    """Two Redis servers to be stopped, and the worker's transport: the first, else the second."""
    request.getfixturevalue("redis_server")  # skips, or fails, where there is none
    with RedisServer() as first, RedisServer() as second:
        backend = redis_database(request, 1)
        yield first, second, Transport("redis", f"{first.url};{second.url}", backend)


def wait_connected(worker, server, times):
    """Wait until the log tells that the worker has connected to *server*, *times* in all."""
    pattern = rf"Connected to \S+:{server.port}/"
    wait_for(lambda: len(re.findall(pattern, worker.log())) >= times, worker.tail)


def test_broker_failover(brokers, start_worker, tmp_path):
    """A worker goes on with the next broker of its list, and back; what runs meanwhile runs on."""
    gate = tmp_path / "gate"
    first, second, transport = brokers
    with start_worker(transport, "limits", *OPTIONS) as worker:
        running = worker.client.send("hold", str(gate))
        worker.wait_started(running)

        first.stop()

        worker.wait_log("Will retry using next failover.")
        wait_connected(worker, second, 1)
        [running] = worker.renew_client(running)
        assert worker.client.send("neighbour", 0).get(timeout=TIMEOUT) in worker.pool_pids()

        second.stop()
        first.start()

        wait_connected(worker, first, 2)
        [running] = worker.renew_client(running)
        assert worker.client.send("neighbour", 0).get(timeout=TIMEOUT) in worker.pool_pids()
        gate.touch()
        assert running.get(timeout=TIMEOUT) == "held"
        assert worker.count("started", running) == 1
