"""What the caller and the log are told of a task that ends badly, and what goes on after it."""

import importlib.metadata

import pytest
from billiard.exceptions import WorkerLostError
from celery.exceptions import TimeLimitExceeded
from worker import wait_for

from tests.servers import RedisServer

TIMEOUT = 60
CELERY = tuple(int(part) for part in importlib.metadata.version("celery").split(".")[:2])


@pytest.fixture(scope="module")
def worker(redis_transport, start_worker):
    with start_worker(redis_transport, "operations", "-c", 4, "--processes", 1) as worker:
        yield worker


@pytest.mark.parametrize(
    ("task", "options", "error", "texts", "process_goes"),
    [
        (("die", "SIGKILL"), {}, WorkerLostError, ["signal 9 (SIGKILL)"], True),
        (("die", "os._exit"), {}, WorkerLostError, ["exitcode 1"], True),
        (("die", "sys.exit"), {}, WorkerLostError, ["exitcode 1"], False),
        (
            ("overrun",),
            {"time_limit": 1},
            TimeLimitExceeded,
            ["Hard time limit (1s) exceeded for apps.operations.overrun", "TimeLimitExceeded(1"],
            False,
        ),
    ],
    ids=["SIGKILL", "os._exit", "sys.exit", "time limit"],
)
def test_task_that_ends_badly(worker, task, options, error, texts, process_goes):
    """Caller and log are told why, in Celery's words; a process that is gone is replaced."""
    [before] = worker.pool_pids()
    seen = len(worker.log())

    result = worker.client.send(*task, **options)

    with pytest.raises(error) as raised:
        result.get(timeout=TIMEOUT)
    if error is WorkerLostError:
        texts = [f"Worker exited prematurely: {texts[0]}"]
        assert texts[0] in str(raised.value)
    wait_for(lambda: all(text in worker.log()[seen:] for text in texts), worker.tail)
    wait_for(lambda: len(worker.up_processes()) == 1, worker.pool)
    [after] = worker.pool_pids()
    assert (after != before) == process_goes
    assert worker.client.send("ok").get(timeout=TIMEOUT) == [None, after]
    wait_for(lambda: worker.slots_in_use() == 0, worker.pool)
    assert worker.count("task_failure", result) == 1


@pytest.mark.skipif(CELERY < (5, 7), reason="task_retry_on_worker_lost is new in Celery 5.7")
@pytest.mark.parametrize("name", ["redis", "rabbitmq"])
def test_retry_on_worker_lost(new_transport, start_worker, name):
    """A task whose process is lost is retried, as often as max_retries says; then it fails."""
    env = {"OPERATIONS_CONF": "task_retry_on_worker_lost=True"}
    options = ("-c", 4, "--processes", 2)
    with start_worker(new_transport(name), "operations", *options, env=env) as worker:
        result = worker.client.send("die_again")

        with pytest.raises(WorkerLostError, match=r"signal 9 \(SIGKILL\)"):
            result.get(timeout=TIMEOUT)

        assert worker.log().count(f"die_again[{result.id}] received") == 3
        assert worker.log().count(f"die_again[{result.id}] retry:") == 2
        assert [line["retries"] for line in worker.records("started")] == [0, 1, 2]
        wait_for(lambda: len(worker.up_processes()) == 2, worker.pool)
        wait_for(lambda: worker.slots_in_use() == 0, worker.pool)
        assert worker.count("task_failure", result) == 1
        assert worker.client.send("ok").get(timeout=TIMEOUT)[1] in worker.pool_pids()


@pytest.mark.parametrize("name", ["redis", "rabbitmq"])
def test_lost_process_while_results_cannot_be_stored(new_transport, start_worker, name):
    """When a process dies and the result backend is away, the worker goes on to take tasks."""
    transport = new_transport(name)
    policy = {"max_retries": 1, "interval_start": 0, "interval_step": 0}
    with RedisServer() as backend:
        env = {
            "ASYNCPOOL_TEST_BACKEND": backend.url,
            "OPERATIONS_CONF": f"result_backend_transport_options={{'retry_policy': {policy}}}",
        }
        options = ("-c", 4, "--processes", 2)
        with start_worker(transport, "operations", *options, env=env) as worker:
            backend.stop()
            victim = worker.client.send("die", "os._exit")
            wait_for(lambda: worker.count("started", victim), worker.tail)
            wait_for(lambda: worker.log().count("is gone: exitcode 1"), worker.tail)

            results = [worker.client.send("ok") for _ in range(8)]

            wait_for(lambda: all(worker.count("started", r) for r in results), worker.tail)
            wait_for(lambda: len(worker.up_processes()) == 2, worker.pool)
            wait_for(lambda: worker.slots_in_use() == 0, worker.pool)
            backend.start()
            assert worker.stats()["pid"] == worker.process.pid
