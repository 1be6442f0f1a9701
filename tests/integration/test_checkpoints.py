"""A run that comes later goes on from what an earlier one has stored."""

import os
import signal

import pytest
from kombu.exceptions import EncodeError
from transports import redis_database
from worker import Transport, wait_for

TIMEOUT = 60


@pytest.fixture(scope="module", params=("redis", "files"))
def transport(request, tmp_path_factory):
    """Makes Redis as broker, a queue of its own, and each kind of result backend."""
    redis, results = redis_database(request, 0), redis_database(request, 1)
    if request.param == "files":
        results = f"file://{tmp_path_factory.mktemp('results')}"
    return lambda: Transport("redis", redis, results)


@pytest.fixture(scope="module")
def worker(transport, start_worker):
    with start_worker(transport(), "checkpoints", "-c", 20, "--processes", 2) as worker:
        yield worker


@pytest.fixture(scope="module")
def narrow_worker(transport, start_worker):
    """A worker that runs one task at a time.

    Else a retry may end before Celery has stored that there is one, over its result.
    """
    with start_worker(transport(), "checkpoints", "-c", 1, "--processes", 1) as worker:
        yield worker


def stored(worker, result):
    """The stored checkpoint of the task of *result*, None if there is none."""
    backend = worker.client.app.backend
    return backend.decode(backend.get(backend.get_key_for_task(result.id, ".checkpoint")))


def resumed(worker, result):
    """What each run of the task has found, in their order."""
    return [line["at"] for line in worker.records("resumed", id=result.id)]


def test_redelivered(transport, start_worker, tmp_path):
    """After a kill of its process a task goes on where it was; then nothing is left."""
    gate = tmp_path / "gate"
    with start_worker(transport(), "checkpoints", "-c", 4, "--processes", 1) as worker:
        results = [worker.client.send("counts", str(gate), 3, 5) for _ in range(3)]
        worker.wait_started(*results)
        wait_for(lambda: len(worker.records("waiting")) == 3, worker.tail)

        os.kill(worker.pool_pids()[0], signal.SIGKILL)

        wait_for(lambda: len(worker.records("waiting")) == 6, worker.tail)
        gate.touch()
        for result in results:
            assert result.get(timeout=TIMEOUT) == "counted"
            assert resumed(worker, result) == [None, {"number": 3, "of": 5}]
        worker.wait_settled(*results)
        assert [stored(worker, result) for result in results] == [None] * 3


def test_retried(narrow_worker):
    """Each retry finds what the run before it has stored."""
    result = narrow_worker.client.send("retries")

    assert result.get(timeout=TIMEOUT) == [0, 1, 2]
    assert resumed(narrow_worker, result) == [None, [0], [0, 1]]
    narrow_worker.wait_settled(result)
    assert stored(narrow_worker, result) is None


def test_autoretried(narrow_worker):
    """So does a run after an error that autoretry_for names."""
    result = narrow_worker.client.send("fails")

    assert result.get(timeout=TIMEOUT) == "before it failed"
    narrow_worker.wait_settled(result)
    assert stored(narrow_worker, result) is None


def test_failed(worker):
    """What a task that fails has stored stays: it may be run again under its id."""
    result = worker.client.send("fails_for_good")

    with pytest.raises(ValueError, match="for good"):
        result.get(timeout=TIMEOUT)
    worker.wait_settled(result)
    assert stored(worker, result) == "so far"


def test_state_and_result_are_left_alone(worker, tmp_path):
    """To others the task is as it would be without; each task has its own."""
    gate = tmp_path / "gate"
    results = [worker.client.send("counts", str(gate), stop_at, 3) for stop_at in (0, 1, 2)]
    for result in results:
        wait_for(lambda id=result.id: worker.records("waiting", id=id), worker.tail)

    assert [result.state for result in results] == ["PENDING"] * 3
    assert [result.info for result in results] == [None] * 3
    found = [stored(worker, result) for result in results]
    assert found == [None, {"number": 1, "of": 3}, {"number": 2, "of": 3}]
    gate.touch()
    assert [result.get(timeout=TIMEOUT) for result in results] == ["counted"] * 3


def test_expires(new_transport, start_worker, tmp_path):
    """It expires as results do."""
    gate = tmp_path / "gate"
    env = {"CHECKPOINTS_CONF": "result_expires=1000"}
    with start_worker(new_transport("redis"), "checkpoints", "-c", 2, env=env) as worker:
        result = worker.client.send("counts", str(gate), 1, 2)
        wait_for(lambda: worker.count("waiting", result), worker.tail)

        backend = worker.client.app.backend
        seconds = backend.client.ttl(backend.get_key_for_task(result.id, ".checkpoint"))
        gate.touch()

        assert 0 < seconds <= 1000
        assert result.get(timeout=TIMEOUT) == "counted"


def test_order(worker):
    """What is stored is the state of the last call, as it was then."""
    result = worker.client.send("ordered", 100)

    assert result.get(timeout=TIMEOUT) == [{"number": 99}, 100]


def test_state_that_cannot_be_encoded(worker):
    """The error names the task and the serializer."""
    result = worker.client.send("cannot_be_encoded")

    with pytest.raises(EncodeError, match=r"the checkpoint of \S+cannot_be_encoded"):
        result.get(timeout=TIMEOUT)


def test_slow_backend(new_transport, start_worker, tmp_path):
    """A write that waits holds up nobody, and is made although its caller was interrupted."""
    gate = tmp_path / "gate"
    transport = new_transport("redis")
    env = {
        "SLOW_GATE": str(gate),
        "ASYNCPOOL_TEST_BACKEND": f"apps.slow_backend:SlowBackend+{transport.backend}",
        "CHECKPOINTS_CONF": "asyncpool_cancel_grace=60; task_ignore_result=True",
    }
    options = ("-c", 4, "--processes", 1)
    with start_worker(transport, "checkpoints", *options, env=env) as worker:
        result = worker.client.send("limited", soft_time_limit=3)
        wait_for(lambda: worker.records("write"), worker.tail)
        worker.client.send("neighbour")
        wait_for(lambda: worker.records("neighbour"), worker.tail)
        worker.wait_log("Soft time limit (3s) exceeded")
        assert stored(worker, result) is None

        gate.touch()

        wait_for(lambda: stored(worker, result) == "written", worker.tail)
        assert not any(line["main"] for line in worker.records("write"))
