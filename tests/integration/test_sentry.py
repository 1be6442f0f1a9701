"""Sentry, which wraps Celery's functions, and the guard, which watches them, work together."""

import pytest
from worker import PATIENCE, wait_for


@pytest.fixture(scope="module")
def worker(redis_transport, start_worker):
    options = ("-c", "20", "--processes", "1")
    with start_worker(redis_transport, "client_sentry", *options) as worker:
        worker.client.module = "apps.client"
        yield worker


def events(worker, task, kind):
    """What Sentry has sent of a task."""
    return worker.records("sentry", type=kind, transaction=f"apps.client.{task}")


def test_error(worker):
    """The error of an async body is one event."""
    with pytest.raises(ValueError, match="no"):
        worker.client.send("fail", "no").get(PATIENCE)

    wait_for(lambda: events(worker, "fail", "error"), worker.tail)
    assert [event["error"] for event in events(worker, "fail", "error")] == [["ValueError"]]


def test_spans(worker):
    """What a body dispatches with `adelay` is a span of its transaction."""
    worker.client.send("dispatches", 3).get(PATIENCE)

    wait_for(lambda: events(worker, "dispatches", "transaction"), worker.tail)
    [transaction] = events(worker, "dispatches", "transaction")
    assert transaction["spans"].count("queue.publish") == 3


def test_guard(worker):
    """The guard names the line of the user, not one of Sentry's."""
    worker.client.send("blocks").get(PATIENCE)

    [line] = [line for line in worker.log().splitlines() if "blocks the event loop" in line]
    assert "apps/client.py:" in line
    assert "await apps.client.add.adelay(...)" in line
    wait_for(lambda: events(worker, "blocks", "transaction"), worker.tail)
    [transaction] = events(worker, "blocks", "transaction")
    assert "queue.publish" in transaction["spans"]


def test_a_later_process(new_transport, start_worker):
    """A process that replaces another is watched, and awaits on its loop, as the first one."""
    options = ("-c", "20", "--processes", "1", "--max-tasks-per-child", "1")
    with start_worker(new_transport("redis"), "client_sentry", *options) as worker:
        worker.client.module = "apps.client"
        [first] = worker.pool_pids()
        worker.client.send("wait", 0.01, 1).get(PATIENCE)
        wait_for(lambda: first not in worker.pool_pids() and worker.up_processes(), worker.tail)

        assert worker.client.send("where").get(PATIENCE) is True
        with pytest.raises(ValueError, match="no"):
            worker.client.send("fail", "no").get(PATIENCE)

        wait_for(lambda: events(worker, "fail", "error"), worker.tail)
        [error] = events(worker, "fail", "error")
        assert error["error"] == ["ValueError"]
        assert error["pid"] != first
