"""The next attempt begins when the one before it is over, and nothing between them is lost."""

import signal

import pytest
from celery import states
from celery.exceptions import WorkerLostError
from worker import PATIENCE, wait_for

#: In all, in the tests of the order.
TASKS, RETRIES = 25, 20


def overlaps(*workers):
    """Ids of tasks of which two attempts ran at a time, in one process or in two."""
    lines = [line for worker in workers for line in worker.records()]
    steps = [line for line in lines if line["what"] in ("begins", "ends")]
    running, found = set(), {line["id"] for line in lines if line["what"] == "overlap"}
    for line in sorted(steps, key=lambda line: line["at"]):
        if line["what"] == "ends":
            running.discard(line["id"])
        elif line["id"] in running:
            found.add(line["id"])
        else:
            running.add(line["id"])
    return found


@pytest.mark.parametrize("kind", ["async", "def", "auto", "quiet"])
@pytest.mark.parametrize("transport", ["redis", "rabbitmq"], indirect=True)
def test_attempts_do_not_overlap(transport, start_worker, kind):
    """Of 500 retries without a countdown none begins before `task_postrun` of the last attempt.

    Two workers with two processes each serve the queue.
    """
    options = ("retries", "-c", "20", "--processes", "2")
    with start_worker(transport, *options) as worker, start_worker(transport, *options) as other:
        results = [worker.client.send(f"{kind}_overlaps", RETRIES) for _ in range(TASKS)]
        both = worker, other
        wait_for(
            lambda: sum(len(each.records("ends")) for each in both) == TASKS * (RETRIES + 1),
            worker.tail,
        )
        if kind != "quiet":
            assert [result.get(PATIENCE) for result in results] == [RETRIES] * TASKS
        assert all(each.records("begins") for each in both)

    assert overlaps(worker, other) == set()


@pytest.fixture
def gate(tmp_path):
    """A file for which the publish of a next attempt waits, and what it says."""
    return tmp_path / "gate"


@pytest.fixture
def start(new_transport, start_worker):
    """Start a worker on Redis, with a queue of the test's own."""
    return lambda: start_worker(new_transport("redis"), "retries", "-c", "4", "--processes", "1")


def at_gate(worker, task, gate):
    """Send a task whose first attempt is over, and whose next is about to be published."""
    result = worker.client.send(task, str(gate))
    wait_for(lambda: worker.count("at the gate", result), worker.tail)
    return result


@pytest.mark.parametrize("task", ["late_gated", "early_gated", "def_gated"])
def test_state_before_the_message(start, gate, task):
    """RETRY is stored, and all handlers have been told, before the next attempt is published."""
    with start() as worker:
        result = at_gate(worker, task, gate)

        assert result.state == states.RETRY
        assert worker.count("retry", result) == worker.count("postrun", result) == 1

        gate.touch()
        assert result.get(PATIENCE) == "again"


@pytest.mark.parametrize("task", ["late_gated", "def_gated"])
def test_message_is_acknowledged_after_the_publish(start, gate, task):
    """With late acks the message is the broker's until the next attempt is published."""
    with start() as worker:
        result = at_gate(worker, task, gate)
        [active] = worker.inspect("active")
        assert (active["id"], active["acknowledged"]) == (result.id, False)

        gate.touch()
        assert result.get(PATIENCE) == "again"


@pytest.mark.parametrize("task", ["late_gated", "early_gated"])
def test_warm_shutdown_waits_for_the_publish(start, gate, task):
    """The next attempt is in the queue when the worker has gone."""
    with start() as worker:
        result = at_gate(worker, task, gate)
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_log("Warm shutdown")

        gate.touch()

        assert worker.wait_exit() == 0
        worker.restart()
        assert result.get(PATIENCE) == "again"
        assert worker.count("prerun", result) == 2


def test_process_that_dies_before_the_publish(start, gate):
    """An acknowledged task is lost with it, and fails; it is not left in RETRY."""
    gate.write_text("kill")
    with start() as worker:
        result = worker.client.send("early_gated", str(gate))

        with pytest.raises(WorkerLostError):
            result.get(PATIENCE)
        assert worker.count("prerun", result) == 1


def test_process_that_dies_before_the_publish_of_a_late_task(start, gate):
    """Its message comes again: nothing is lost."""
    gate.write_text("kill")
    with start() as worker:
        result = worker.client.send("late_gated", str(gate))

        assert result.get(PATIENCE) == "again"
        assert worker.count("prerun", result) == 3  # the first attempt twice


def test_revoke_between_two_attempts(start, gate):
    """It is too late for this attempt, and revokes the next."""
    with start() as worker:
        result = at_gate(worker, "late_gated", gate)
        result.revoke(terminate=True)
        wait_for(lambda: result.id in worker.inspect("revoked"), worker.tail)

        gate.touch()

        wait_for(lambda: result.state == states.REVOKED, worker.tail)
        assert worker.count("prerun", result) == 1


@pytest.mark.parametrize("is_warm_before", [False, True])
@pytest.mark.parametrize("task", ["late_gated", "def_gated", "early_gated"])
@pytest.mark.parametrize("transport", ["redis", "rabbitmq"])
def test_cold_shutdown_within_the_publish(
    new_transport, start_worker, transport, gate, task, is_warm_before
):
    """It ends in the grace time; with late acks too this attempt does not come again beside it."""
    options = ("retries", "-c", "4", "--processes", "1")
    env = {"RETRIES_CONF": f"asyncpool_cancel_grace={PATIENCE}"}
    with start_worker(new_transport(transport), *options, env=env) as worker:
        result = at_gate(worker, task, gate)
        waits = worker.client.send("tells_when_cancelled")
        wait_for(lambda: worker.count("waits", waits), worker.tail)
        if is_warm_before:
            worker.process.send_signal(signal.SIGTERM)
            worker.wait_log("Warm shutdown")
        worker.process.send_signal(signal.SIGQUIT)
        wait_for(lambda: worker.count("cancelled", waits), worker.tail)

        gate.touch()

        worker.wait_exit()
        worker.restart()
        assert result.get(PATIENCE) == "again"
        worker.stop()  # what has come again is through, too
        assert [line["retries"] for line in worker.records("prerun", id=result.id)] == [0, 1]


@pytest.mark.parametrize("task", ["late_gated", "def_gated"])
def test_publish_that_takes_longer_than_the_limits(start, gate, task):
    """Limits are the body's: they do not end what comes after it."""
    with start() as worker:
        result = worker.client.send(task, str(gate), soft_time_limit=0.5, time_limit=1)
        wait_for(lambda: worker.count("at the gate", result), worker.tail)
        slower = worker.client.send("outlasts_limits", 12)
        assert slower.get(PATIENCE) == 12

        gate.touch()

        assert result.get(PATIENCE) == "again"
        assert worker.count("failure", result) == 0
