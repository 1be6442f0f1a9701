"""After the broker was lost a worker takes no more than it should, and soon as much as before."""

import importlib.metadata

import pytest
from celery import chain, group
from transports import redis_database
from worker import Transport, wait_for

from tests.servers import RedisServer

TIMEOUT = 60
CELERY = tuple(int(part) for part in importlib.metadata.version("celery").split(".")[:2])
SLOTS = 5


@pytest.fixture
def cut(rabbitmq_server):
    """Close all connections of RabbitMQ, and wait until *worker* knows; return its results."""

    def cut(worker, *results):
        rabbitmq_server.ctl("close_all_connections", "cut by a test")
        worker.wait_log("Connection to broker lost")
        worker.wait_log("Connected to amqp", count=2)
        return worker.renew_client(*results)

    return cut


@pytest.fixture
def start(new_transport, start_worker):
    """Start a worker with five slots on a queue of its own."""

    def start(conf, *args, name="rabbitmq"):
        options = ("-c", SLOTS, "--processes", 2, *args)
        return start_worker(new_transport(name), "limits", *options, env={"LIMITS_CONF": conf})

    return start


def was_received(worker, result):
    return f"[{result.id}] received" in worker.log()


@pytest.mark.parametrize("running", [1, SLOTS])
def test_prefetch_is_reduced_and_restored(start, cut, tmp_path, running):
    """After a reconnect tasks that run on are counted, until enough others have been run."""
    gate = tmp_path / "gate"
    with start("worker_prefetch_multiplier=2") as worker:
        results = [worker.client.send("hold", str(gate)) for _ in range(running)]
        worker.wait_started(*results)

        results = cut(worker, *results)

        reduced = max(2, 2 * SLOTS - 2 * running)
        worker.wait_log(
            f"Temporarily reducing the prefetch count to {reduced} to avoid over-fetching "
            f"since {running} tasks are currently being processed.\n"
            f"The prefetch count will be gradually restored to {2 * SLOTS}"
        )
        gate.touch()
        assert [result.get(timeout=TIMEOUT) for result in results] == ["held"] * running
        for _ in range(SLOTS):
            worker.client.send("neighbour", 0).get(timeout=TIMEOUT)
        worker.wait_log(f"Prefetch count has been restored to the maximum of {2 * SLOTS}")
        assert worker.stats()["prefetch_count"] == 2 * SLOTS
        assert all(worker.count("started", result) == 1 for result in results)


@pytest.mark.parametrize(
    "conf",
    [
        "worker_prefetch_multiplier=2",
        "worker_prefetch_multiplier=1; worker_enable_prefetch_count_reduction=False",
    ],
    ids=["multiplier 2", "no reduction"],
)
def test_cancelled_tasks_give_their_slots_back(start, cut, tmp_path, conf):
    """Late tasks that the loss of the broker cancels take no slots from what comes after."""
    gate = tmp_path / "gate"
    conf += "; worker_cancel_long_running_tasks_on_connection_loss=True; task_acks_late=True"
    with start(conf) as worker:
        results = [worker.client.send("hold", str(gate)) for _ in range(SLOTS)]
        worker.wait_started(*results)

        results = cut(worker, *results)

        worker.wait_started(*results, times=2)
        assert "Temporarily reducing the prefetch count" not in worker.log()
        wait_for(lambda: worker.slots_in_use() == SLOTS, worker.pool)
        other = worker.client.send("neighbour", 0)
        if "multiplier=2" in conf:
            wait_for(lambda: was_received(worker, other), worker.tail)
        else:
            worker.stats()
            assert not was_received(worker, other)
        gate.touch()
        assert [result.get(timeout=TIMEOUT) for result in results] == ["held"] * SLOTS
        assert other.get(timeout=TIMEOUT) in worker.pool_pids()
        assert all(worker.count("started", result) == 2 for result in results)
        wait_for(lambda: worker.slots_in_use() == 0, worker.pool)


def test_quorum_queue(start, cut, tmp_path):
    """On a quorum queue running tasks run on, and the worker goes on with all its prefetch."""
    gate = tmp_path / "gate"
    with start("worker_prefetch_multiplier=2; task_default_queue_type='quorum'") as worker:
        worker.client.app.conf.task_default_queue_type = "quorum"
        results = [worker.client.send("hold", str(gate)) for _ in range(4)]
        worker.wait_started(*results)

        results = cut(worker, *results)

        worker.client.app.conf.task_default_queue_type = "quorum"
        assert worker.client.send("neighbour", 0).get(timeout=TIMEOUT) in worker.pool_pids()
        if CELERY >= (5, 7):
            assert "Temporarily reducing the prefetch count" not in worker.log()
            assert worker.stats()["prefetch_count"] == 2 * SLOTS
        gate.touch()
        assert [result.get(timeout=TIMEOUT) for result in results] == ["held"] * 4
        assert all(worker.count("started", result) == 1 for result in results)


def test_canvases_after_a_restart_of_redis(request, start_worker):
    """When Redis was away and is back, groups and chains of groups run again."""
    backend = redis_database(request, 1)
    with RedisServer() as server:
        transport = Transport("redis", server.url, backend)
        with start_worker(transport, "limits", "-c", SLOTS, "--processes", 2) as worker:
            assert worker.client.send("neighbour", 0).get(timeout=TIMEOUT)

            server.stop()
            worker.wait_log("Trying again in")
            server.start()

            worker.wait_log("Connected to redis", count=2)
            worker.renew_client()
            task = worker.client.s("neighbour", 0)
            task.set_immutable(True)
            results = [
                group([task] * SLOTS).apply_async(),
                chain(group([task] * SLOTS), group([task] * SLOTS)).apply_async(),
            ]
            for result in results:
                assert set(result.get(timeout=TIMEOUT)) <= set(worker.pool_pids())
