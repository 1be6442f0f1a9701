"""OpenTelemetry: no span is lost, at retries or when a worker process ends."""

import signal
from collections import Counter

import pytest
from worker import PATIENCE, wait_for

from tests.conftest import require_module

TASKS = 10


@pytest.fixture(scope="module", autouse=True)
def package():
    require_module("opentelemetry.sdk")
    require_module("opentelemetry.instrumentation.celery")


def run_tasks(worker, task):
    results = [worker.client.send(task, n) for n in range(TASKS)]
    for result in results:
        result.get(PATIENCE)


def names_of_spans(worker):
    return Counter(span["name"] for span in worker.records("span"))


def expected_spans(task):
    return {f"run/apps.otel.{task}": TASKS, **{f"inner {n}": 1 for n in range(TASKS)}}


@pytest.mark.parametrize("task", ["async_work", "def_work"])
def test_warm_stop(redis_transport, start_worker, task):
    """Each task's span, and those of its body, are sent when the worker stops."""
    with start_worker(redis_transport, "otel", "-c", 10, "--processes", 2) as worker:
        run_tasks(worker, task)
        assert not worker.records("span")

    assert names_of_spans(worker) == expected_spans(task)


def test_metrics_and_logs(redis_transport, start_worker):
    """So are metrics and logs."""
    with start_worker(redis_transport, "otel", "-c", 10, "--processes", 1) as worker:
        run_tasks(worker, "async_work")
        assert not worker.records("metric")

    assert worker.records("metric", name="done")[-1]["value"] == TASKS
    bodies = Counter(line["body"] for line in worker.records("log"))
    assert {body for body in bodies if str(body).startswith("told")}


def test_recycled_process(redis_transport, start_worker):
    """A process that is replaced sends what it holds, while the worker goes on."""
    options = ("-c", 10, "--processes", 1, "--max-tasks-per-child", TASKS)
    with start_worker(redis_transport, "otel", *options) as worker:
        run_tasks(worker, "async_work")
        wait_for(lambda: names_of_spans(worker) == expected_spans("async_work"), worker.tail)


def test_cold_stop(redis_transport, start_worker):
    """A cold shutdown leaves time for it."""
    with start_worker(redis_transport, "otel", "-c", 20, "--processes", 1) as worker:
        run_tasks(worker, "async_work")
        waiting = worker.client.send("waits")
        worker.wait_started(waiting)
        worker.process.send_signal(signal.SIGQUIT)
        worker.wait_exit()

    assert expected_spans("async_work").items() <= names_of_spans(worker).items()


#: Enough that some of them began before the attempt before them was over.
RETRIES = 25


@pytest.mark.parametrize("task", ["async_again", "def_again", "auto_again"])
def test_retries(redis_transport, start_worker, task):
    """Each attempt has its span and each retry has one, all in one trace, one after the other."""
    options = (redis_transport, "otel", "-c", 10, "--processes", 2)
    with start_worker(*options) as worker, start_worker(*options) as other:
        results = [worker.client.send(task, RETRIES) for _ in range(TASKS)]
        assert [result.get(PATIENCE) for result in results] == [RETRIES] * TASKS

    spans = worker.records("span") + other.records("span")
    assert Counter(span["name"] for span in spans) == {
        f"run/apps.otel.{task}": TASKS * (RETRIES + 1),
        f"apply_async/apps.otel.{task}": TASKS * RETRIES,
    }
    lengths = Counter(span["trace"] for span in spans)
    assert sorted(lengths.values()) == [2 * RETRIES + 1] * TASKS
    parents = Counter(span["parent"] for span in spans)
    assert parents.pop(None) == TASKS
    assert set(parents.values()) == {1}
    for complaint in ("Failed to detach context", "no existing span found"):
        assert complaint not in worker.log() + other.log()
