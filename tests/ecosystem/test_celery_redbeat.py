"""celery-redbeat: beat with its schedule in Redis, and a lock, so that one of several sends."""

import uuid

import pytest
from program import Program
from worker import PATIENCE, wait_for

from tests.conftest import require_module

SCHEDULER = ("-S", "redbeat.RedBeatScheduler", "-l", "INFO", "--pidfile=")


@pytest.fixture(scope="module")
def worker(redis_transport, start_worker):
    require_module("redbeat")
    env = {"SCHEDULED_REDBEAT_PREFIX": f"redbeat-{uuid.uuid4().hex[:8]}:"}
    with start_worker(redis_transport, "scheduled", "-c", 20, "--processes", 2, env=env) as worker:
        yield worker


def start_beat(worker):
    return Program(worker, "beat", *SCHEDULER)


def wait_ran(worker, name, times):
    """Wait until the tasks of entry *name* have run *times* more."""
    count = len(worker.records("ran", name=name)) + times
    wait_for(lambda: len(worker.records("ran", name=name)) >= count, worker.tail)


def check_runs(worker, name, sent):
    """Each of the *sent* tasks of entry *name* has run once."""
    wait_for(lambda: len(worker.records("ran", name=name)) >= sent, worker.tail)
    ids = [line["id"] for line in worker.records("ran", name=name)]
    assert len(ids) == len(set(ids)) == sent


def test_entry_made_and_deleted_by_a_task(worker, flavour):
    """What a task has scheduled while beat runs is sent, and each of its tasks runs once."""
    name = f"{flavour}-planned"
    with start_beat(worker) as beat:
        beat.wait_log("beat: Acquired lock")
        key = worker.client.send("plan", name, f"{flavour}_tick", 0.3).get(PATIENCE)
        wait_ran(worker, name, 5)

    sent = worker.client.send("unplan", key).get(PATIENCE)

    assert sent >= 5
    check_runs(worker, name, sent)


def test_two_beats(worker):
    """One sends, the other waits for its lock; when the first is killed, it takes over."""
    name = "locked"
    key = worker.client.send("plan", name, "async_tick", 1).get(PATIENCE)
    with start_beat(worker) as first:
        first.wait_log("beat: Acquired lock")
        with start_beat(worker) as second:
            second.wait_log("beat: Starting...")
            wait_ran(worker, name, 2)
            assert "Acquired lock" not in second.log()

            first.kill()  # just after a run, so not between its note in Redis and its message

            second.wait_log("beat: Acquired lock")
            wait_ran(worker, name, 2)

    sent = worker.client.send("unplan", key).get(PATIENCE)

    check_runs(worker, name, sent)
    assert len(worker.records("ran", name=name)) == sum(
        beat.log().count(f"Sending due task {name}") for beat in (first, second)
    )


def test_worker_restarted(worker):
    """While processes are replaced and beat goes on, nothing is lost or doubled."""
    name = "restarted"
    key = worker.client.send("plan", name, "async_tick", 0.1).get(PATIENCE)
    with start_beat(worker):
        wait_ran(worker, name, 5)
        pids = set(worker.pool_pids())

        worker.client.app.control.pool_restart(destination=[worker.hostname])

        wait_for(lambda: not pids & set(worker.pool_pids()), worker.tail)
        wait_ran(worker, name, 5)

    sent = worker.client.send("unplan", key).get(PATIENCE)

    check_runs(worker, name, sent)
