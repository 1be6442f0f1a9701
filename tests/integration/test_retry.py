"""A retry leaves when RETRY is stored: what the next attempt stores stays."""

import pytest
from celery import states
from worker import PATIENCE, wait_for


@pytest.fixture(scope="module")
def worker(redis_transport, start_worker):
    backend = f"apps.late_retry:LateRetryBackend+{redis_transport.backend}"
    env = {"ASYNCPOOL_TEST_BACKEND": backend}
    with start_worker(
        redis_transport, "features", "-c", "8", "--processes", "2", env=env
    ) as worker:
        yield worker


def run(worker, *args, **options):
    """Run a task with one retry until both attempts have ended; return what is stored."""
    result = worker.client.send(*args, **options)
    wait_for(lambda: worker.count("postrun", result) == 2, worker.tail)
    assert worker.count("retry", result) == 1
    return result, result.backend.get_task_meta(result.id, cache=False)


@pytest.mark.parametrize("kind", ["retry", "autoretry"])
def test_last_state_is_the_last_attempts(worker, flavour, kind):
    """RETRY of one attempt does not overwrite SUCCESS of the next, however slow the backend."""
    result, stored = run(worker, f"{flavour}_{kind}", 1)

    assert stored["status"] == states.SUCCESS
    assert result.get(PATIENCE) == 1


def test_ignored_result(worker, flavour):
    """A retry of a task whose result nobody wants stores nothing."""
    _, stored = run(worker, f"{flavour}_quiet_retry")

    assert stored["status"] == states.PENDING
