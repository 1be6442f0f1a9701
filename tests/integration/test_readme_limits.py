"""README's examples of a soft limit's hook and of checkpoints work as they are written."""

import os
import signal

import pytest
from worker import wait_for

TIMEOUT = 60


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    return tmp_path_factory.mktemp("gates") / "gate"


@pytest.fixture(scope="module")
def worker(redis_transport, start_worker, gate):
    env = {"README_GATE": str(gate)}
    with start_worker(
        redis_transport, "readme_limits", "-c", 4, "--processes", 1, env=env
    ) as worker:
        yield worker


def test_hook(worker):
    """The body is told that it is late, and returns what it has by then."""
    result = worker.client.send("crawl", list(range(100_000)), soft_time_limit=0.5)

    pages = result.get(timeout=TIMEOUT)

    assert pages == list(range(len(pages)))
    assert len(pages) < 100_000


def test_checkpoints(worker, gate):
    """After a kill of its process the task goes on at the page where it was."""
    result = worker.client.send("import_pages", 5)
    wait_for(lambda: worker.records("page", number=2), worker.tail)
    wait_for(lambda: [r["id"] for r in worker.inspect("active")] == [result.id], worker.tail)

    os.kill(worker.pool_pids()[0], signal.SIGKILL)

    wait_for(lambda: len(worker.records("page", number=2)) == 2, worker.tail)
    gate.touch()
    assert result.get(timeout=TIMEOUT) == 5
    assert [line["number"] for line in worker.records("page")] == [0, 1, 2, 2, 3, 4]
