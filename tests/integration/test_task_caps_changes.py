"""asyncpool_limits when the worker ends, the broker goes away, and slots and processes change."""

import importlib.metadata
import signal

import pytest
from capped import (
    SLOTS,
    TIMEOUT,
    all_done,
    hold,
    most_at_once,
    send_held,
    start,
    wait_counts,
    wait_idle,
)
from transports import TRANSPORTS
from worker import wait_for

CELERY = tuple(int(part) for part in importlib.metadata.version("celery").split(".")[:2])


@pytest.fixture
def gate(tmp_path):
    """What the tasks wait for."""
    return tmp_path / "gate"


@pytest.fixture
def prefetch_of(rabbitmq_server):
    """Which numbers of messages RabbitMQ keeps unacknowledged at once, for its consumers."""

    def prefetch():
        listing = rabbitmq_server.ctl("-q", "list_channels", "global_prefetch_count")
        return {int(line) for line in listing.split() if line.isdecimal()}

    return prefetch


@pytest.mark.parametrize("name", TRANSPORTS)
def test_warm_shutdown(new_transport, start_worker, gate, name):
    """What runs ends; what waits for its cap stays with the broker, for the next worker."""
    with start(start_worker, new_transport(name)) as worker:
        results = hold(worker, gate, 5)

        worker.process.send_signal(signal.SIGTERM)
        worker.wait_log("waiting for 2 tasks")
        gate.touch()
        assert worker.wait_exit() == 0

        assert len(worker.records("started")) == 2
        worker.restart()
        assert all_done(results)
        assert len(worker.records("started")) == 7
        assert most_at_once(worker, *results) == 2


def test_prefetch(new_transport, start_worker, prefetch_of, gate):
    """RabbitMQ is asked for as many more as wait for their caps, and in the end for no more."""
    with start(start_worker, new_transport("rabbitmq")) as worker:
        results = hold(worker, gate, 28)

        wait_for(lambda: SLOTS + 28 in prefetch_of(), prefetch_of)
        assert worker.stats()["prefetch_count"] == SLOTS

        gate.touch()
        assert all_done(results)
        wait_for(lambda: max(prefetch_of()) == SLOTS, prefetch_of)
        wait_idle(worker)


def test_broker_is_lost(new_transport, start_worker, rabbitmq_server, prefetch_of, gate):
    """What runs keeps its place; what waits comes again, and everything runs once."""
    with start(start_worker, new_transport("rabbitmq")) as worker:
        results = hold(worker, gate, 10)

        rabbitmq_server.ctl("close_all_connections", "cut by a test")
        worker.wait_log("Connection to broker lost")
        worker.wait_log("Connected to amqp", count=2)
        results = worker.renew_client(*results)

        wait_counts(worker, 2, 10)
        neighbour = worker.client.send("neighbour")
        assert neighbour.get(timeout=TIMEOUT) in worker.pool_pids()
        gate.touch()
        assert all_done(results)
        assert most_at_once(worker, *results) == 2
        assert len(worker.records("started")) == 12 + 1
        wait_idle(worker)
        for _ in range(SLOTS):  # each ack restores some of what Celery has reduced
            worker.client.send("neighbour").get(timeout=TIMEOUT)
        wait_for(lambda: max(prefetch_of()) == SLOTS, prefetch_of)


@pytest.mark.skipif(CELERY < (5, 6), reason="worker_disable_prefetch is new in Celery 5.6")
def test_disabled_prefetch(new_transport, start_worker, gate):
    """A worker that fetches only what can run at once fetches more than what waits for a cap."""
    with start(start_worker, new_transport("redis"), "worker_disable_prefetch=True") as worker:
        scrapes = send_held(worker, gate, 30)
        neighbour = worker.client.send("neighbour")

        assert neighbour.get(timeout=TIMEOUT) in worker.pool_pids()
        gate.touch()
        assert all_done(scrapes)
        assert most_at_once(worker, *scrapes) == 2
        wait_idle(worker)


def test_pool_is_scaled_and_restarted(new_transport, start_worker, gate):
    """Slots come and go, and processes are replaced; the cap holds over old and new ones."""
    conf = "worker_pool_restarts=True"
    with start(start_worker, new_transport("redis"), conf) as worker:
        control = worker.client.app.control
        results = hold(worker, gate, 6)
        before = worker.pool_pids()

        control.pool_restart(destination=[worker.hostname], reply=True)
        wait_for(lambda: len(set(worker.pool_pids()) - set(before)) == 2, worker.pool)
        control.pool_grow(4, destination=[worker.hostname], reply=True)
        control.pool_shrink(8, destination=[worker.hostname], reply=True)

        wait_counts(worker, 2, 6)
        gate.touch()
        assert all_done(results)
        assert most_at_once(worker, *results) == 2
        wait_idle(worker)
        assert worker.pool()["max-concurrency"] == SLOTS + 4 - 8
        neighbours = [worker.client.send("neighbour") for _ in range(10)]
        assert all(result.get(timeout=TIMEOUT) for result in neighbours)
