"""celery-batches, which calls the pool with a tracer of its own, for many messages at once."""

import pytest
from worker import PATIENCE, wait_for

from tests.conftest import require_module


@pytest.fixture
def worker(transport, new_transport, start_worker):
    require_module("celery_batches")
    own = new_transport(transport.name)
    with start_worker(own, "collected", "-c", 4, "--processes", 1) as worker:
        yield worker


def nothing_held(worker):
    """All messages are acknowledged: the worker takes as many more as it may hold, and runs them.

    It holds eight messages at most.
    """
    results = [worker.client.send("add", n, n) for n in range(40)]

    assert [result.get(PATIENCE) for result in results] == [2 * n for n in range(40)]
    wait_for(lambda: not worker.slots_in_use(), worker.tail)
    if worker.transport.name == "redis":
        with worker.client.app.connection_for_read() as connection:
            redis = connection.default_channel.client
            wait_for(lambda: not redis.hlen("unacked"), lambda: redis.hgetall("unacked"))


@pytest.mark.parametrize("acks", ["early", "late"])
def test_batches(worker, flavour, acks):
    """Each call has its result, each message is acknowledged, and later tasks run."""
    for _ in range(3):
        results = [worker.client.send(f"{flavour}_{acks}", n, 1) for n in range(12)]
        assert [result.get(PATIENCE) for result in results] == [n + 1 for n in range(12)]

    nothing_held(worker)
    batches = worker.records("batch")
    assert sum(line["size"] for line in batches) == 36
    assert {line["main"] for line in batches} == {flavour == "async"}


def test_rest_of_a_batch(worker, flavour):
    """A batch that does not fill up runs when its time is over."""
    results = [worker.client.send(f"{flavour}_late", n) for n in range(2)]

    assert [result.get(PATIENCE) for result in results] == [0, 1]
    nothing_held(worker)


def test_batch_that_fails(worker, flavour):
    """celery-batches logs the error, and its messages are acknowledged."""
    for _ in range(12):
        worker.client.send(f"{flavour}_fails", 1)

    wait_for(lambda: sum(line["size"] for line in worker.records("batch")) == 12, worker.tail)
    nothing_held(worker)
    assert "ValueError('no')" in worker.log()


def test_batch_with_limits_that_cannot_be(worker):
    """celery-batches passes no limits of a task on: these keep no batch from running."""
    results = [worker.client.send("async_nonsense", n, 1) for n in range(12)]

    assert [result.get(PATIENCE) for result in results] == [n + 1 for n in range(12)]
    nothing_held(worker)


def test_batch_over_the_workers_limit(new_transport, start_worker):
    """It has failed, as far as celery-batches knows, and its messages are acknowledged."""
    require_module("celery_batches")
    args = ("-c", 4, "--processes", 1, "--time-limit", 1)
    with start_worker(new_transport("redis"), "collected", *args) as worker:
        for _ in range(4):
            worker.client.send("async_hangs", 1)

        worker.wait_log("Error: TimeLimitExceeded(1")
        nothing_held(worker)


def test_slots(worker):
    """Batches, which come without a slot, beside other tasks: all run, and all slots come back."""
    batches = [worker.client.send("async_late", n, 1) for n in range(40)]
    others = [worker.client.send("add", n, 1) for n in range(40)]

    assert [result.get(PATIENCE) for result in batches + others] == [n + 1 for n in range(40)] * 2
    nothing_held(worker)
