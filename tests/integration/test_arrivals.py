"""A limit arrives in a body, whatever it awaits; slots come back, whatever makes the tasks."""

import asyncio
import sys

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from worker import PATIENCE, wait_for

LIMITS = {
    "soft": ({"soft_time_limit": 0.3}, SoftTimeLimitExceeded),
    "hard": ({"time_limit": 0.3}, TimeLimitExceeded),
    "revoke": ({}, TaskRevokedError),
}
LOSING = [
    "talks_to_redis",
    "talks_to_redis_in_a_group",
    "waits_with_a_timeout",
    "drops_cancellations",
]
TOGETHER = 15


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def worker(redis_transport, start_worker, request):
    # Time enough for ten looks of a busy machine at bodies that went on.
    env = {"ARRIVALS_CONF": f"asyncpool_loop={request.param!r}; asyncpool_cancel_grace=20"}
    options = ("-c", "60", "--processes", "1")
    with start_worker(redis_transport, "arrivals", *options, env=env) as worker:
        yield worker


def ends_of(worker, results):
    """The exceptions with which *results* have ended."""
    for result in results:
        result.get(PATIENCE, propagate=False)
    return [type(result.result) for result in results]


@pytest.mark.parametrize("how", LIMITS)
@pytest.mark.parametrize("task", LOSING)
def test_bodies_in_which_a_limit_gets_lost(worker, task, how):
    """Fifteen at once in one process all end, and the process stays."""
    process = worker.client.send("pid").get(PATIENCE)
    options, error = LIMITS[how]
    results = [worker.client.send(task, "arrivals-key", **options) for _ in range(TOGETHER)]
    if how == "revoke":
        wait_for(lambda: worker.slots_in_use() == TOGETHER, worker.tail)
        for result in results:
            result.revoke(terminate=True)

    assert set(ends_of(worker, results)) <= {error, ExceptionGroup}
    wait_for(lambda: worker.slots_in_use() == 0, worker.tail)
    assert worker.client.send("pid").get(PATIENCE) == process


@pytest.mark.parametrize("how", ["timeout", "wait_for", "group", "move_on_after", "fail_after"])
def test_soft_limit_and_a_timeout_of_as_many_seconds(worker, how):
    """The soft limit is what forty bodies end with."""
    results = [
        worker.client.send("has_time", how, seconds, soft_time_limit=0.3)
        for seconds in (0.2999, 0.3, 0.3, 0.3)
        for _ in range(10)
    ]

    ends = ends_of(worker, results[10:])

    assert ends == [SoftTimeLimitExceeded] * 30


def test_child_to_which_a_context_leads(worker):
    """Nothing is kept of jobs that have left such a context."""
    before = worker.client.send("tasks_left").get(PATIENCE)
    results = [worker.client.send("leads_to_its_child") for _ in range(300)]
    ends_of(worker, results)

    assert worker.client.send("tasks_left").get(PATIENCE) < before + 50


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="needs Python 3.12")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_tasks_that_are_started_eagerly(redis_transport, start_worker, loop):
    """More jobs than slots all run, with a task factory that makes the first step at once."""
    if loop == "uvloop" and (3, 13) <= sys.version_info < (3, 13, 3):
        pytest.skip("uvloop gives the factory an argument that it has from Python 3.13.3 on")
    env = {"ARRIVALS_CONF": f"asyncpool_loop={loop!r}", "ARRIVALS_EAGER": "yes"}
    options = ("-c", "4", "--processes", "1")
    with start_worker(redis_transport, "arrivals", *options, env=env) as worker:
        for _ in range(20):
            worker.client.send("leaves_no_result")
        process = worker.client.send("pid").get(PATIENCE)
        children = [worker.client.send("has_children") for _ in range(20)]

        assert [result.get(PATIENCE) for result in children] == [process] * 20
        limited = worker.client.send("waits_with_a_timeout", "key", soft_time_limit=0.3)
        assert ends_of(worker, [limited]) == [SoftTimeLimitExceeded]
        wait_for(lambda: worker.slots_in_use() == 0, worker.tail)
