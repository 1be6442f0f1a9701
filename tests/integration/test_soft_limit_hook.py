"""A task with a hook is told of its soft limit while its body goes on."""

import pytest
from celery.exceptions import TaskRevokedError, TimeLimitExceeded
from worker import wait_for

TIMEOUT = 60


@pytest.fixture(scope="module", params=("uvloop", "asyncio"))
def worker(request, redis_transport, start_worker):
    """A worker with each loop."""
    conf = f"asyncpool_loop='{request.param}'; asyncpool_cancel_grace=60"
    with start_worker(
        redis_transport, "softhooks", "-c", 40, "--processes", 1, env={"SOFTHOOKS_CONF": conf}
    ) as worker:
        yield worker


def nothing_left(worker):
    """No asyncio task and no slot is left of earlier hooks and bodies."""

    def left():
        return worker.client.send("left_behind").get(timeout=TIMEOUT)

    wait_for(lambda: not left(), left)
    wait_for(lambda: worker.slots_in_use() == 0, worker.pool)


@pytest.mark.parametrize(
    "task",
    ["plain", "asynchronous", "callable", "of_async_task", "class_based", "in_thread"],
)
def test_hook_is_called(worker, task):
    """Once, on the loop, as part of the job; the body goes on and returns."""
    result = worker.client.send(task)

    assert result.get(timeout=TIMEOUT) == "told"

    [hook] = worker.records("hook", id=result.id)
    assert hook["loop_runs"]
    assert hook["main"]
    assert hook["current"] == result.id
    assert hook["progress"] == f"as far as {result.id}"
    assert (
        f"Soft time limit (0.3s) exceeded for apps.softhooks.{task}[{result.id}]" in worker.log()
    )


def test_limit_of_a_call(worker):
    """A soft limit that is given with the call calls the hook of a base class."""
    result = worker.client.send("of_base", soft_time_limit=0.2)

    assert result.get(timeout=TIMEOUT) == "told"
    assert worker.count("hook", result) == 1


def test_each_job_has_its_own(worker):
    """Twenty at once, each hook with the request of its own job."""
    results = [worker.client.send("plain") for _ in range(20)]

    assert [result.get(timeout=TIMEOUT) for result in results] == ["told"] * 20
    for result in results:
        [hook] = worker.records("hook", id=result.id)
        assert hook["progress"] == f"as far as {result.id}"


def test_in_time(worker):
    """The hook of a task that ends before its limit is not called."""
    result = worker.client.send("in_time")

    assert result.get(timeout=TIMEOUT) == "in time"
    assert worker.count("hook", result) == 0


@pytest.mark.parametrize(
    ("task", "error"),
    [
        ("hook_fails", "ValueError: no, {id}"),
        ("hook_exits", "SystemExit: 3"),
        ("hook_retries", "RuntimeError: on_soft_limit cannot retry its task"),
    ],
)
def test_hook_that_raises(worker, task, error):
    """It is logged with its traceback; the body goes on, and the process."""
    result = worker.client.send(task)

    assert result.get(timeout=TIMEOUT) == "told"
    worker.wait_settled(result)
    assert worker.count("started", result) == 1
    log = worker.log()
    assert f"on_soft_limit of apps.softhooks.{task}[{result.id}] failed; the task goes on" in log
    assert error.format(id=result.id) in log


@pytest.mark.parametrize("task", ["hook_is_slow", "hook_is_slow_in_thread"])
def test_hook_ends_with_the_body(worker, task):
    """A hook that still runs is cancelled, and cleans up, before the task's result is told."""
    result = worker.client.send(task)

    assert result.get(timeout=TIMEOUT) == "told"

    [line] = worker.records("hook cleaned up", id=result.id)
    assert line["same"] == result.id
    nothing_left(worker)


def test_hard_limit_holds(worker):
    """The hard limit ends a body that does not listen to its hook, and the hook."""
    result = worker.client.send("goes_on", soft_time_limit=0.1, time_limit=4)

    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=TIMEOUT)

    for what in ("hook", "body ended", "hook cleaned up"):
        assert worker.count(what, result) == 1, what
    nothing_left(worker)


def test_revoke(worker):
    """A revoke ends the body and its hook."""
    result = worker.client.send("goes_on")
    wait_for(lambda: worker.count("hook", result), worker.tail)

    result.revoke(terminate=True)

    with pytest.raises(TaskRevokedError):
        result.get(timeout=TIMEOUT)
    wait_for(lambda: worker.count("hook cleaned up", result), worker.tail)
    nothing_left(worker)


def test_hook_that_blocks(worker, tmp_path):
    """The watchdog names the task and shows the hook's line."""
    gate = tmp_path / "gate"
    result = worker.client.send("hook_blocks", str(gate))

    worker.wait_log(f"task apps.softhooks.hook_blocks[{result.id}]")
    worker.wait_log("time.sleep(0.02)  # the blocking line")
    gate.touch()

    assert result.get(timeout=TIMEOUT) == "told"


def test_limit_of_the_worker(new_transport, start_worker):
    """The worker's --soft-time-limit calls hooks, too."""
    options = ("-c", 2, "--processes", 1, "--soft-time-limit", 1)
    with start_worker(new_transport("redis"), "softhooks", *options) as worker:
        result = worker.client.send("of_base")

        assert result.get(timeout=TIMEOUT) == "told"
        assert worker.count("hook", result) == 1
