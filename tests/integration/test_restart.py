"""A worker that is restarted, or killed and started again, loses no task that is acked late."""

import signal

import pytest
from celery import chain
from worker import wait_for

TIMEOUT = 60


@pytest.fixture(
    params=[
        ("rabbitmq", "pool_restart"),
        ("rabbitmq", "SIGTERM"),
        ("rabbitmq", "SIGKILL"),
        ("redis", "SIGKILL"),
        ("filesystem", "pool_restart"),
    ],
    ids="-".join,
)
def case(request):
    """A transport, and how the worker is restarted."""
    return request.param


@pytest.fixture
def how(case):
    """How the worker is restarted."""
    return case[1]


@pytest.fixture
def worker(case, new_transport, start_worker):
    conf = "task_acks_late=True; worker_pool_restarts=True"
    if case[0] == "redis":
        # A worker takes at its start what has been with a killed one for that long.
        conf += "; broker_transport_options={'visibility_timeout': 0}"
    with start_worker(
        new_transport(case[0]), "limits", "-c", 4, "--processes", 2, env={"LIMITS_CONF": conf}
    ) as worker:
        yield worker


def restart_pool(worker):
    """Have all processes replaced."""
    before = worker.pool_pids()
    [reply] = worker.client.app.control.pool_restart(
        destination=[worker.hostname], reply=True, timeout=10
    )
    assert reply[worker.hostname] == {"ok": "reload started"}
    wait_for(
        lambda: len(set(worker.up_processes()) - set(before)) == 2,
        lambda: f"two new processes: {worker.pool()}\n{worker.tail()}",
    )


def test_restart_during_a_task(worker, how, tmp_path):
    """The task completes: where it runs, or again after a kill."""
    gate = tmp_path / "gate"
    result = worker.client.send("hold", str(gate))
    worker.wait_started(result)

    if how == "pool_restart":
        restart_pool(worker)
        gate.touch()
    elif how == "SIGTERM":
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_log("waiting for 1 tasks")
        gate.touch()
        assert worker.wait_exit() == 0
        worker.restart()
    else:
        worker.process.kill()
        worker.wait_exit()
        worker.restart()
        worker.wait_started(result, times=2)
        gate.touch()

    assert result.get(timeout=TIMEOUT) == "held"
    assert worker.count("started", result) == (2 if how == "SIGKILL" else 1)
    pid = worker.client.send("neighbour", 0).get(timeout=TIMEOUT)
    wait_for(lambda: set(worker.pool_pids()) == set(worker.up_processes()), worker.pool)
    assert pid in worker.pool_pids()


def test_restart_between_the_links_of_a_chain(worker, how, tmp_path):
    """The second link completes, wherever its message was when the worker was restarted."""
    gate = tmp_path / "gate"
    first, second = worker.client.s("neighbour", 0), worker.client.s("hold", str(gate))
    second.set_immutable(True)
    result = chain(first, second).apply_async()
    assert result.parent.get(timeout=TIMEOUT)
    worker.wait_settled(result.parent)

    if how == "pool_restart":
        restart_pool(worker)
        gate.touch()
    else:
        worker.process.send_signal(getattr(signal, how))
        if how == "SIGTERM":
            gate.touch()  # it may have started
        worker.wait_exit()
        worker.restart()
        gate.touch()

    assert result.get(timeout=TIMEOUT) == "held"
    assert worker.count("started", result.parent) == 1
