"""The broker cannot be reached when the next attempt of a task is to be published."""

import pytest
from proxy import Proxy
from transports import make_transport
from worker import PATIENCE, wait_for


@pytest.fixture
def worker(start_worker, request, tmp_path):
    """A worker on Redis, behind a proxy, with ``worker.proxy``."""
    transport = make_transport("redis", request, tmp_path)
    with Proxy(request.getfixturevalue("redis_server").port) as proxy:
        env = {"ASYNCPOOL_TEST_BROKER": proxy.before(transport.broker)}
        with start_worker(transport, "retries", "-c", "4", "--processes", "1", env=env) as worker:
            worker.proxy = proxy
            yield worker


@pytest.mark.parametrize("task", ["late_gated", "early_gated"])
def test_task_fails_and_is_settled(worker, tmp_path, task):
    """It does not stay in RETRY, and its slot is free when the broker is back."""
    gate = tmp_path / "gate"
    result = worker.client.send(task, str(gate))
    wait_for(lambda: worker.count("at the gate", result), worker.tail)
    worker.proxy.cut()
    worker.wait_log("Connection to broker lost")

    gate.touch()

    wait_for(lambda: result.state == "FAILURE", worker.tail)
    assert "could not be published" in result.traceback
    worker.proxy.heal()
    assert worker.client.send("total", [1, 2]).get(PATIENCE) == 3
    assert worker.count("failure", result) == 1
