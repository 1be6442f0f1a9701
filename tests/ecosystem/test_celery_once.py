"""celery-once, whose `apply_async` takes a lock, retries here and gives its lock back."""

import pytest
from worker import PATIENCE, wait_for

from tests.conftest import require_module


@pytest.fixture(scope="module")
def worker(redis_transport, start_worker):
    require_module("celery_once")
    with start_worker(redis_transport, "once", "-c", "10", "--processes", "2") as worker:
        yield worker


def locks(worker):
    return worker.client.app.backend.client.keys("qo_*")


@pytest.mark.parametrize("task", ["async_once", "def_once", "auto_once", "unlocked_once"])
def test_retry(worker, task):
    """All attempts run, one after the other; after the last one no lock is left."""
    result = worker.client.send(task, task, 3)

    assert result.get(PATIENCE) == 3
    assert worker.count("ran", result) == 4
    applied = [line["retries"] for line in worker.records("applied", id=result.id)]
    assert applied == [1, 2, 3]
    wait_for(lambda: not locks(worker), worker.tail)
