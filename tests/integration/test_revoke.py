"""Revokes with more than one worker, in canvases and before a task is sent."""

import contextlib

import pytest
from celery import chord
from celery.exceptions import ChordError, TaskRevokedError
from worker import wait_for

TIMEOUT = 60


@pytest.fixture(scope="module")
def workers(redis_transport, start_worker):
    """Two workers that act on one queue."""
    env = {"LIMITS_CONF": "task_track_started=True"}
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                start_worker(redis_transport, "limits", "-c", 4, "--processes", 2, env=env)
            )
            for _ in range(2)
        ]


@pytest.fixture
def send(workers):
    return workers[0].client.send


def total(workers, what, result):
    return sum(worker.count(what, result) for worker in workers)


def wait_started(workers, result):
    wait_for(lambda: total(workers, "started", result), workers[0].tail)
    wait_for(lambda: result.state == "STARTED", lambda: result.state)


def wait_flagged(workers, result):
    for worker in workers:
        worker.wait_log(f"Tasks flagged as revoked: {result.id}")


def test_revoke_without_terminate(workers, send, tmp_path):
    """A running task runs on: STARTED, then SUCCESS."""
    gate = tmp_path / "gate"
    result = send("hold", str(gate))
    wait_started(workers, result)

    result.revoke()

    wait_flagged(workers, result)
    assert result.state == "STARTED"
    gate.touch()
    assert result.get(timeout=TIMEOUT) == "held"
    assert result.state == "SUCCESS"


def test_revoke_with_terminate(workers, send):
    """A running task is ended by the worker that has it, and revoked once."""
    result = send("shaped", "plain")
    wait_started(workers, result)

    result.revoke(terminate=True)

    with pytest.raises(TaskRevokedError):
        result.get(timeout=TIMEOUT)
    assert result.state == "REVOKED"
    wait_for(lambda: total(workers, "task_revoked", result), workers[0].tail)
    wait_for(lambda: total(workers, "cleaned up", result), workers[0].tail)
    assert total(workers, "task_revoked", result) == 1


@pytest.mark.parametrize("terminate", [False, True])
def test_revoke_before_its_time(workers, send, tmp_path, terminate):
    """A task that waits for its time never starts."""
    result = send("hold", str(tmp_path / "gate"), countdown=3)

    result.revoke(terminate=terminate)

    with pytest.raises(TaskRevokedError):
        result.get(timeout=TIMEOUT)
    assert result.state == "REVOKED"
    wait_for(lambda: total(workers, "task_revoked", result), workers[0].tail)
    assert total(workers, "started", result) == 0
    assert total(workers, "task_revoked", result) == 1


def test_revoke_by_stamp_before_it_is_sent(workers, tmp_path):
    """A task with a stamp that was revoked before never starts."""
    client = workers[0].client
    client.app.control.revoke_by_stamped_headers(
        {"customer": ["gone"]}, terminate=True, reply=True
    )
    message = client.s("hold", str(tmp_path / "gate"))
    message.stamp(customer="gone")

    result = message.apply_async()

    with pytest.raises(TaskRevokedError):
        result.get(timeout=TIMEOUT)
    assert total(workers, "started", result) == 0


def test_revoke_of_a_chord_member(new_transport, start_worker, tmp_path):
    """A chord whose waiting member is revoked fails with its error, and does not hang."""
    gate = tmp_path / "gate"
    with start_worker(new_transport("redis"), "limits", "-c", 1, "--processes", 1) as worker:
        members = [worker.client.s("hold", str(gate)) for _ in range(2)]
        body = worker.client.s("neighbour")
        result = chord(members, body).apply_async()
        first, second = result.parent.results
        worker.wait_started(first)
        worker.wait_log(f"hold[{second.id}] received")

        second.revoke()
        worker.wait_log(f"Tasks flagged as revoked: {second.id}")
        gate.touch()

        wait_for(result.ready, worker.tail)
        assert isinstance(result.result, ChordError)
        assert "TaskRevokedError" in str(result.result)
        assert first.get(timeout=TIMEOUT) == "held"
        assert worker.count("started", second) == 0
