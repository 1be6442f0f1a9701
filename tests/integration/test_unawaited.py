"""A forgotten ``-P asyncpool``: the worker says so, and no AsyncTask ends as SUCCESS unrun."""

import pytest
from celery import VERSION
from worker import PATIENCE, wait_for

APP = "apps.unawaited."
UNAWAITED = ["async_call", "gives_coroutine", "ignored", "kept", "retried"]
NAMED = ["async_call", "ignored", "kept", "plain", "retried"]
FINE = ["awaits_another", "calls_eagerly", "computes", "decorated", "runs_itself"]

POOLS = {
    "prefork": (),
    "threads": (),
    "solo": (),
    "gevent": (),
    "spawn": ("prefork", "worker_pool_start_method='spawn'; worker_proc_alive_timeout=60"),
}


@pytest.fixture(scope="module", params=POOLS)
def pool(request):
    if request.param == "spawn" and VERSION < (5, 7):
        pytest.skip("worker_pool_start_method is new in Celery 5.7")
    return request.param


@pytest.fixture(scope="module")
def worker(pool, redis_transport, start_worker):
    """A worker with one of Celery's own pools."""
    name, configured = POOLS[pool] or (pool, "")
    worker = start_worker(
        redis_transport,
        "unawaited",
        *("-c", 2, "-l", "INFO"),
        selection=("-P", name),
        env={"UNAWAITED": configured},
    )
    worker.wait_ready = lambda: worker.wait_log(" ready.")
    with worker:
        yield worker


def test_named_at_the_start(worker, pool):
    """One error line says which tasks never run there, and what to type."""
    [line] = [line for line in worker.log().splitlines() if "never awaits" in line]

    assert "ERROR" in line
    assert f"the pool of this worker, {POOLS[pool][0] if POOLS[pool] else pool}, " in line
    assert "-P asyncpool" in line
    assert line.endswith("These tasks: " + ", ".join(APP + name for name in NAMED))


@pytest.mark.parametrize("task", UNAWAITED)
def test_fails(worker, task):
    """In the place of SUCCESS; once, without a retry, and without a warning of Python's."""
    result = worker.client.send(task, 1)

    if task == "ignored":
        wait_for(lambda: f"[{result.id}] raised unexpected" in worker.log(), worker.tail)
    else:
        with pytest.raises(RuntimeError, match="has not run: it is an async def"):
            result.get(timeout=PATIENCE)
    assert f"Task {APP}{task}[{result.id}] succeeded" not in worker.log()
    assert f"Task {APP}{task}[{result.id}] retry" not in worker.log()
    assert "was never awaited" not in worker.log()
    assert worker.records("ran", id=result.id) == []


@pytest.mark.parametrize("task", FINE)
def test_what_is_awaited(worker, task, pool):
    """A task that awaits by itself, and one that is called by another, are as ever."""
    if (task, pool) == ("calls_eagerly", "gevent"):
        pytest.skip("eager calls on a loop do not go with gevent's greenlets")
    value = worker.client.send(task, 2).get(timeout=PATIENCE)

    assert value == (6 if task == "awaits_another" else 2)


def test_other_tasks_of_the_process(worker):
    """The body of a direct call runs, though its task fails when it is sent."""
    before = len(worker.records("ran"))

    worker.client.send("awaits_another", 2).get(timeout=PATIENCE)

    assert len(worker.records("ran")) == before + 3


def test_this_pool_says_nothing(new_transport, start_worker):
    """With this pool there is nothing to tell of, and the tasks run."""
    with start_worker(new_transport("redis"), "unawaited", "-c", 2, "--processes", 1) as worker:
        assert worker.client.send("kept", 2).get(timeout=PATIENCE) == 2
        assert "never awaits" not in worker.log()


OTHER_POOL = """
from celery.concurrency.solo import TaskPool
class Pool(TaskPool):
    "One that might await."
"""


def test_pool_of_somebody_else(new_transport, start_worker, tmp_path):
    """Pools of other packages may await: of these nothing is said, and nothing fails."""
    (tmp_path / "other_pool.py").write_text(OTHER_POOL)
    worker = start_worker(
        new_transport("redis"),
        "unawaited",
        env={"UNAWAITED": "worker_pool='other_pool:Pool'"},
        selection=(),
    )
    worker.environment["PYTHONPATH"] += f":{tmp_path}"
    worker.wait_ready = lambda: worker.wait_log(" ready.")
    with worker:
        result = worker.client.send("ignored", 2)
        worker.wait_log(f"Task {APP}ignored[{result.id}] succeeded")
        assert "never awaits" not in worker.log()
