"""celery-singleton, whose `apply_async` takes a lock and uses the result, retries here."""

import pytest
from worker import PATIENCE, wait_for

from tests.conftest import require_module


@pytest.fixture(scope="module")
def worker(redis_transport, start_worker):
    require_module("celery_singleton")
    with start_worker(redis_transport, "singleton", "-c", "10", "--processes", "2") as worker:
        yield worker


def locks(worker):
    return worker.client.app.backend.client.keys("SINGLETONLOCK_*")


def test_retry_with_other_arguments(worker, flavour):
    """Each attempt takes the lock of its own arguments, and runs."""
    result = worker.client.send(f"{flavour}_next_page", 1)

    assert result.get(PATIENCE) == 3
    assert [line["page"] for line in worker.records("ran", id=result.id)] == [1, 2, 3]


@pytest.mark.parametrize("task", ["async_again", "def_again", "auto_again"])
def test_retry_that_gives_its_lock_back(worker, task):
    """An overridden `retry` above an overridden `apply_async`: all attempts, no lock is left."""
    before = set(locks(worker))
    result = worker.client.send(task, task)

    assert result.get(PATIENCE) == 3
    assert worker.count("ran", result) == 4
    wait_for(lambda: set(locks(worker)) <= before, worker.tail)


def test_duplicate(worker):
    """A second call while the first one waits gets the first one's result."""
    first, second = worker.client.send("calls_itself", 1).get(PATIENCE)

    assert first == second


def test_retry_that_cannot_be_sent(worker):
    """The task fails, and its handler gives the lock back."""
    before = set(locks(worker))
    result = worker.client.send("unsendable", 1)

    with pytest.raises(Exception, match="not one of task_queues"):
        result.get(PATIENCE)
    wait_for(lambda: set(locks(worker)) <= before, worker.tail)
