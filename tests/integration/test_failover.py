"""Another worker, or another broker, takes over."""

import re
import signal

import pytest
from redis import Redis
from transports import messages_in_redis, redis_database
from worker import Transport, wait_for

from tests.servers import RedisSentinel, RedisServer

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


@pytest.fixture
def replicated(request):
    """A Redis, its replica, and the Sentinel that knows both."""
    request.getfixturevalue("redis_server")  # skips, or fails, where there is none
    with (
        RedisServer() as server,
        RedisServer("--replicaof", f"127.0.0.1 {server.port}") as replica,
        RedisSentinel(server, down_after=3) as sentinel,
    ):
        yield server, replica, sentinel


def test_replica_takes_over(replicated, request, start_worker, tmp_path):
    """Sentinel names the new Redis: what is running is acknowledged there, and new tasks run.

    That is with batches: kombu's transport forgets the acks of the lost connection.
    """
    server, replica, sentinel = replicated
    gate = tmp_path / "gate"
    options = {"master_name": "shop"}
    conf = f"broker_transport_options={options!r}; asyncpool_redis_batching=True"
    url = f"sentinel://127.0.0.1:{sentinel.port}/0"
    transport = Transport("redis", url, redis_database(request, 1))
    worker = start_worker(
        transport, "batches", "-c", 4, "--processes", 1, env={"BATCHES_CONF": conf}
    )
    with Redis.from_url(server.url) as old, Redis.from_url(replica.url) as new:
        wait_for(lambda: new.info("replication")["master_link_status"] == "up", "a replica")
        with Redis.from_url(sentinel.url) as asked:
            wait_for(lambda: len(asked.sentinel_slaves("shop")) == 1, "Sentinel knows it")
        worker.client.app.conf.broker_transport_options = options
        with worker:
            held = {worker.client.send("hold_late", str(gate)).id for _ in range(4)}
            wait_for(lambda: runs_of(worker, "started") == held, worker.tail)
            done = old.info("replication")["master_repl_offset"]
            wait_for(
                lambda: new.info("replication")["slave_repl_offset"] >= done, "the replica has it"
            )

            server.stop(signal.SIGKILL)
            worker.wait_log("Connection to broker lost")
            wait_for(lambda: address(sentinel) == replica.port, sentinel.log_tail)
            gate.touch()

            worker.renew_client()
            worker.client.app.conf.broker_transport_options = options
            more = {worker.client.send("late").id for _ in range(20)}
            wait_for(lambda: runs_of(worker, "started") == held | more, worker.tail)
            wait_for(lambda: messages_in_redis(new, transport.queue) == (0, 0, 0), worker.tail)
            assert runs_of(worker, "ended") == held


def address(sentinel):
    """The port of the Redis that Sentinel names."""
    with Redis.from_url(sentinel.url) as asked:
        return asked.sentinel_get_master_addr_by_name("shop")[1]


def runs_of(worker, what):
    return {line["id"] for line in worker.records(what)}
