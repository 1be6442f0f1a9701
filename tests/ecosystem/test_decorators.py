"""tenacity, wrapt, decorator, Prometheus, OpenTelemetry and async_lru around async tasks."""

import pytest
from celery.exceptions import TaskRevokedError, TimeLimitExceeded

from tests.conftest import require_module

TIMEOUT = 60

MODULES = ("async_lru", "decorator", "opentelemetry", "prometheus_client", "tenacity", "wrapt")

#: Those that give the coroutine, or are async themselves: awaited on the loop.
ON_LOOP = [
    *("async_lru", "decorator_awaits", "decorator_passes", "opentelemetry", "prometheus"),
    *("tenacity", "wrapt_awaits", "wrapt_passes"),
]


@pytest.fixture(scope="module")
def worker(redis_transport, start_worker):
    for module in MODULES:
        require_module(module)
    with start_worker(redis_transport, "decorated", "-c", "20", "--processes", "1") as worker:
        yield worker


@pytest.mark.parametrize("task", ON_LOOP)
def test_on_the_loop(worker, task):
    """The body is awaited on the process's loop, as its own job."""
    result = worker.client.send(task, 1)

    assert result.get(TIMEOUT) == [2, True, result.id]


@pytest.mark.parametrize("task", ["decorator_runs", "wrapt_runs"])
def test_on_a_loop_of_its_own(worker, task):
    """A decorator may run a loop of its own, in a thread."""
    result = worker.client.send(task, 1)

    assert result.get(TIMEOUT) == [2, False, result.id]


@pytest.mark.parametrize("task", [*ON_LOOP, "decorator_runs", "wrapt_runs"])
def test_hard_limit(worker, task):
    """A hard limit ends the body, and not its process."""
    pids = worker.pool_pids()
    result = worker.client.s(task, 1, 60).apply_async(time_limit=1)

    with pytest.raises(TimeLimitExceeded):
        result.get(TIMEOUT)
    worker.wait_settled(result)
    assert worker.pool_pids() == pids


@pytest.mark.parametrize("task", [*ON_LOOP, "decorator_runs", "wrapt_runs"])
def test_revoke(worker, task):
    """So does a revoke."""
    pids = worker.pool_pids()
    result = worker.client.send(task, 1, 60)
    worker.wait_started(result)

    worker.client.app.control.revoke(result.id, terminate=True)

    with pytest.raises(TaskRevokedError):
        result.get(TIMEOUT)
    worker.wait_settled(result)
    assert worker.pool_pids() == pids
