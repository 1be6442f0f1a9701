"""New Relic's agent: each task is one transaction, which its body finds."""

import pytest
from worker import PATIENCE, wait_for

from tests.conftest import require_module

TASKS = 50


@pytest.fixture(scope="module")
def worker(redis_transport, start_worker):
    require_module("newrelic")
    options = ("-c", TASKS, "--processes", 1)
    with start_worker(redis_transport, "watched", *options) as worker:
        yield worker


@pytest.mark.parametrize("task", ["async_body", "def_body"])
def test_transactions(worker, task):
    """Fifty interleaved tasks are fifty transactions, each with what its own body has added."""
    sent = {number: worker.client.send(task, number) for number in range(TASKS)}
    guids = {number: result.get(PATIENCE) for number, result in sent.items()}

    def transactions():
        lines = worker.records("transaction")
        return [line for line in lines if line["path"].endswith(f"apps.watched.{task}")]

    wait_for(lambda: len(transactions()) >= TASKS, worker.tail)
    found = {line["attributes"].get("number"): line["guid"] for line in transactions()}
    assert len(transactions()) == TASKS
    assert {number: {guid} for number, guid in found.items()} == {
        number: set(seen) for number, seen in guids.items()
    }
