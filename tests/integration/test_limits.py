"""Limits and revokes: cooperative first, certain in the end, reported once."""

import contextlib
from collections import Counter

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from transports import make_transport
from worker import wait_for

TIMEOUT = 60
LIMIT = 1.0
SHAPES = (
    "plain in_task_group at_end_of_task_group in_timeout in_wait_for in_gather in_shield "
    "in_anyio_group in_anyio_scope in_semaphore in_queue in_event in_lock in_subprocess "
    "in_thread in_generator in_child_task"
).split()


@pytest.fixture(scope="module", params=("redis", "rabbitmq"))
def hub_transport(request, tmp_path_factory):
    """The transports that Celery reads with a hub."""
    return make_transport(request.param, request, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=("uvloop", "asyncio"))
def worker(request, hub_transport, start_worker):
    """A worker with each loop, on each broker."""
    env = {"LIMITS_CONF": f"asyncpool_loop='{request.param}'; asyncpool_cancel_grace=30"}
    with start_worker(
        hub_transport, "limits", "-c", 60, "--processes", 1, "-E", env=env
    ) as worker:
        yield worker


@pytest.fixture(scope="module")
def ended(worker):
    """Bodies of all shapes that have met their soft limit, their hard limit or a revoke.

    They run at once, since they mostly wait. Should one of them not end, its own
    test says so.
    """
    options = {
        "soft": {"soft_time_limit": LIMIT},
        "hard": {"time_limit": LIMIT, "link_error": worker.client.s("errback")},
        "revoke": {},
    }
    results = {
        (how, shape): worker.client.send("shaped", shape, **options[how])
        for how in options
        for shape in SHAPES
    }
    for shape in SHAPES:
        to_revoke = results["revoke", shape]
        wait_for(lambda id=to_revoke.id: whats(worker, id)["started"], worker.tail)
        to_revoke.revoke(terminate=True)
    with contextlib.suppress(AssertionError):
        wait_for(
            lambda: all(whats(worker, result.id)["task_postrun"] for result in results.values()),
            worker.tail,
        )
    return results


def whats(worker, task_id):
    return Counter(line["what"] for line in worker.records(id=task_id))


def settled(worker, task_id):
    """Wait until the body has gone; return what was recorded."""
    wait_for(lambda: whats(worker, task_id)["task_postrun"], worker.tail)
    return whats(worker, task_id)


def nothing_left(worker):
    """No asyncio task, subprocess or slot is left of earlier bodies."""

    def left():
        found = worker.client.send("left_behind").get(timeout=TIMEOUT)
        return not any(found.values()) or found

    wait_for(lambda: left() is True, left)
    wait_for(lambda: worker.slots_in_use() == 0, worker.pool)


@pytest.mark.parametrize("shape", SHAPES)
def test_soft_limit(worker, ended, shape):
    """The body sees SoftTimeLimitExceeded at its await; uncaught it is the plain failure."""
    result = ended["soft", shape]

    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=TIMEOUT)

    assert "await SHAPES[shape]()" in result.traceback
    recorded = settled(worker, result.id)
    assert worker.records("saw", id=result.id)[0]["what_it_saw"] == "SoftTimeLimitExceeded"
    assert recorded["cleaned up"] == 1
    assert recorded["task_failure"] == recorded["on_failure"] == 1
    assert worker.records("task_failure", id=result.id)[0]["type"] == "SoftTimeLimitExceeded"
    assert f"Soft time limit ({LIMIT}s) exceeded for apps.limits.shaped[{result.id}]" in (
        worker.log()
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_hard_limit(worker, ended, shape):
    """The body is cancelled and cleans up; TimeLimitExceeded is reported once, with its stack."""
    result = ended["hard", shape]

    with pytest.raises(TimeLimitExceeded, match=rf"\b{LIMIT}\b"):
        result.get(timeout=TIMEOUT)

    assert "await SHAPES[shape]()" in result.traceback
    recorded = settled(worker, result.id)
    assert worker.records("saw", id=result.id)[0]["what_it_saw"] == "CancelledError"
    wait_for(lambda: whats(worker, result.id)["errback"], worker.tail)
    assert recorded["cleaned up"] == 1
    assert recorded["task_failure"] == recorded["on_failure"] == 1
    assert whats(worker, result.id)["errback"] == 1
    assert result.state == "FAILURE"
    assert f"Hard time limit ({LIMIT}s) exceeded for apps.limits.shaped[{result.id}]" in (
        worker.log()
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_revoke(worker, ended, shape):
    """revoke(terminate=True) cancels the body; the task is revoked, once."""
    result = ended["revoke", shape]

    with pytest.raises(TaskRevokedError):
        result.get(timeout=TIMEOUT)
    recorded = settled(worker, result.id)
    wait_for(lambda: whats(worker, result.id)["task_revoked"], worker.tail)
    assert worker.records("saw", id=result.id)[0]["what_it_saw"] == "CancelledError"
    assert recorded["cleaned up"] == 1
    assert recorded["task_failure"] == recorded["on_failure"] == recorded["task_success"] == 0
    assert whats(worker, result.id)["task_revoked"] == 1
    assert result.state == "REVOKED"


def test_nothing_is_left(worker, ended):
    """All these bodies ran in one process, which lives; no task, subprocess or slot is left."""
    nothing_left(worker)

    assert {line["pid"] for line in worker.records("started")} == set(worker.pool_pids())


def test_soft_limit_handled(worker):
    """A body may catch the limit, await its own cleanup with timeouts, and return."""
    result = worker.client.send("handles_soft_limit", soft_time_limit=0.2, time_limit=20)

    assert result.get(timeout=TIMEOUT) == "cleaned up"
    assert result.state == "SUCCESS"


def test_retry_at_the_soft_limit(worker):
    """self.retry in answer to the soft limit gives a retry, under Celery's name."""
    result = worker.client.send("retries_at_limit", soft_time_limit=0.2)

    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=TIMEOUT)
    wait_for(lambda: whats(worker, result.id)["task_postrun"] == 3, worker.tail)
    assert whats(worker, result.id)["task_retry"] == 2
    assert whats(worker, result.id)["task_failure"] == 1
    assert "Retry in 0s: SoftTimeLimitExceeded(0.2" in worker.log()


def test_hard_limit_is_not_retried(worker):
    """autoretry_for=(Exception,) does not see the hard limit: the task fails with it."""
    result = worker.client.send("autoretried", time_limit=0.2)

    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=TIMEOUT)
    recorded = settled(worker, result.id)
    assert recorded["task_retry"] == 0
    assert recorded["started"] == recorded["task_failure"] == 1


def test_def_soft_limit(worker):
    """The soft limit is raised in the thread of a def body."""
    result = worker.client.send("def_spins", soft_time_limit=0.3)

    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=TIMEOUT)
    recorded = settled(worker, result.id)
    assert recorded["saw"] == recorded["cleaned up"] == recorded["task_failure"] == 1


def test_def_hard_limit(worker):
    """The hard limit ends a def body in its thread, with its stack."""
    result = worker.client.send("def_spins", time_limit=0.3)

    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=TIMEOUT)
    assert "time.sleep(0.01)" in result.traceback
    recorded = settled(worker, result.id)
    assert recorded["cleaned up"] == recorded["task_failure"] == recorded["on_failure"] == 1


def test_def_revoke(worker):
    """A def body is ended by a revoke."""
    result = worker.client.send("def_spins")
    wait_for(lambda: whats(worker, result.id)["started"], worker.tail)

    result.revoke(terminate=True, signal="SIGKILL")

    with pytest.raises(TaskRevokedError):
        result.get(timeout=TIMEOUT)
    recorded = settled(worker, result.id)
    assert recorded["cleaned up"] == 1
    assert recorded["task_failure"] == recorded["task_success"] == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"time_limit": -1}, "runs without the time_limit -1"),
        ({"soft_time_limit": "soon"}, "runs without the soft_time_limit 'soon'"),
        ({"soft_time_limit": 5, "time_limit": 5}, "runs without its soft_time_limit of 5s"),
    ],
)
def test_nonsense_limits_of_a_call(worker, options, sentence):
    """A call runs under those of its limits that can be; the log names the others."""
    result = worker.client.send("neighbour", 0, **options)

    result.get(timeout=TIMEOUT)
    assert whats(worker, result.id)["started"] == 1
    [line] = [line for line in worker.log().splitlines() if result.id in line and sentence in line]
    assert f"neighbour[{result.id}]" in line
