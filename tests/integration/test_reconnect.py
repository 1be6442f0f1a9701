"""Limits, and tasks, when the broker's connection is cut."""

import importlib.metadata
import signal
import time
from collections import Counter

import pytest
from celery.exceptions import TimeLimitExceeded
from worker import wait_for

TIMEOUT = 60
CELERY = tuple(int(part) for part in importlib.metadata.version("celery").split(".")[:2])


def whats(worker, task_id):
    return Counter(line["what"] for line in worker.records(id=task_id))


@pytest.fixture(params=("redis", "rabbitmq"))
def broker(request, tmp_path):
    """A transport, and how to cut all its connections."""
    from transports import make_transport

    transport = make_transport(request.param, request, tmp_path)
    return transport, request.getfixturevalue(f"cut_{request.param}")


@pytest.fixture
def cut_redis(redis):
    def cut():
        redis.client_kill_filter(_type="normal", skipme=True)
        redis.client_kill_filter(_type="pubsub", skipme=True)

    return cut


@pytest.fixture
def cut_rabbitmq(rabbitmq_server):
    return lambda: rabbitmq_server.ctl("close_all_connections", "cut by a test")


def test_limits_survive_a_reconnect(broker, start_worker):
    """A limit that is over while, or after, the worker reconnects ends its task."""
    transport, cut = broker
    with start_worker(transport, "limits", "-c", 4, "--processes", 1) as worker:
        result = worker.client.send("shaped", "plain", time_limit=3)
        wait_for(lambda: whats(worker, result.id)["started"], worker.tail)
        started = time.monotonic()

        cut()
        [result] = worker.renew_client(result)
        worker.wait_log("Connection to broker lost")

        with pytest.raises(TimeLimitExceeded):
            result.get(timeout=TIMEOUT)
        assert time.monotonic() - started < 30
        wait_for(lambda: worker.client.send("neighbour", 0).get(timeout=TIMEOUT), worker.tail)
        assert whats(worker, result.id)["task_failure"] == 1


def test_running_tasks_survive_a_reconnect(broker, start_worker, tmp_path):
    """Running tasks run on and end well; the pool takes as many as before."""
    gate = tmp_path / "gate"
    transport, cut = broker
    with start_worker(transport, "limits", "-c", 4, "--processes", 2) as worker:
        results = [worker.client.send("hold", str(gate)) for _ in range(4)]
        wait_for(lambda: all(whats(worker, r.id)["started"] for r in results), worker.tail)

        cut()
        results = worker.renew_client(*results)
        worker.wait_log("Connection to broker lost")
        wait_for(lambda: worker.slots_in_use() == 4, worker.tail)
        waiting = worker.client.send("hold", str(gate))
        wait_for(lambda: worker.log().count("hold[") >= 5, worker.tail)
        assert worker.slots_in_use() == 4
        gate.touch()

        for result in (*results, waiting):
            assert result.get(timeout=TIMEOUT) == "held"
        wait_for(lambda: worker.slots_in_use() == 0, worker.pool)


def test_late_tasks_are_cancelled_on_connection_loss(request, start_worker, tmp_path):
    """With worker_cancel_long_running_tasks_on_connection_loss they are ended and sent again."""
    from transports import make_transport

    transport = make_transport("rabbitmq", request, tmp_path)
    conf = "worker_cancel_long_running_tasks_on_connection_loss=True; task_acks_late=True"
    with start_worker(
        transport, "limits", "-c", 4, "--processes", 1, env={"LIMITS_CONF": conf}
    ) as worker:
        pids = worker.pool_pids()
        result = worker.client.send("shaped", "plain")
        wait_for(lambda: whats(worker, result.id)["started"], worker.tail)

        request.getfixturevalue("cut_rabbitmq")()
        [result] = worker.renew_client(result)

        wait_for(lambda: whats(worker, result.id)["started"] == 2, worker.tail)
        wait_for(lambda: whats(worker, result.id)["cleaned up"] == 1, worker.tail)
        assert worker.pool_pids() == pids
        result.revoke(terminate=True)
        wait_for(lambda: whats(worker, result.id)["cleaned up"] == 2, worker.tail)


@pytest.mark.parametrize("selected_by", ["name", "alias"])
def test_cancelled_queue_stays_cancelled(broker, start_worker, selected_by):
    """A queue that `cancel_consumer` has taken away is not consumed again after a reconnect."""
    if selected_by == "alias" and CELERY < (5, 7):
        pytest.skip("Celery before 5.7 forgets that a queue was cancelled if -Q named its alias")
    transport, cut = broker
    other = f"{transport.queue}-other"
    selected = other if selected_by == "name" else f"{other}-alias"
    conf = f"task_queues=[__import__('kombu').Queue({other!r}, alias='{other}-alias')]"
    options = ("-c", 4, "--processes", 1, "-Q", f"{transport.queue},{selected}")
    with start_worker(transport, "limits", *options, env={"LIMITS_CONF": conf}) as worker:
        assert worker.client.send("neighbour", 0, queue=other).get(timeout=TIMEOUT)
        [reply] = worker.client.app.control.cancel_consumer(
            other, destination=[worker.hostname], reply=True, timeout=10
        )
        assert reply[worker.hostname] == {"ok": f"no longer consuming from {other}"}

        cut()
        worker.renew_client()
        worker.wait_log("Connection to broker lost")
        worker.wait_log("Connected to", count=2)

        ignored = worker.client.send("neighbour", 0, queue=other)
        for _ in range(3):
            assert worker.client.send("neighbour", 0).get(timeout=TIMEOUT)
        assert f"[{ignored.id}] received" not in worker.log()
        with worker.client.app.connection_for_read() as connection:
            waiting = connection.default_channel.queue_declare(other, passive=True)
        assert waiting.message_count == 1


def test_worker_that_was_stopped(new_transport, start_worker, rabbitmq_server, tmp_path):
    """One that was stopped beyond its heartbeat, and goes on, reconnects; its tasks ran on."""
    gates = [tmp_path / "gate 0", tmp_path / "gate 1"]
    env = {"LIMITS_CONF": "broker_heartbeat=2"}
    with start_worker(
        new_transport("rabbitmq"), "limits", "-c", 4, "--processes", 1, env=env
    ) as worker:
        results = [worker.client.send("hold", str(gate)) for gate in gates]
        worker.wait_started(*results)

        worker.process.send_signal(signal.SIGSTOP)
        missed = "missed heartbeats from client"
        count = rabbitmq_server.log().count(missed)
        gates[0].touch()
        assert results[0].get(timeout=TIMEOUT) == "held"
        wait_for(lambda: rabbitmq_server.log().count(missed) > count, rabbitmq_server.log_tail)
        worker.process.send_signal(signal.SIGCONT)

        worker.wait_log("Connection to broker lost")
        wait_for(lambda: worker.slots_in_use() == 1, worker.pool)
        gates[1].touch()
        assert results[1].get(timeout=TIMEOUT) == "held"
        assert worker.client.send("neighbour", 0).get(timeout=TIMEOUT) in worker.pool_pids()
        assert all(worker.count("started", result) == 1 for result in results)
