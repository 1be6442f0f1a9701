"""A body is found where the tracer began it, by whatever a tool has keyed that by."""

import pytest
from worker import PATIENCE


@pytest.fixture(scope="module")
def worker(redis_transport, start_worker):
    options = ("-c", 50, "--processes", 1)
    with start_worker(redis_transport, "keyed", *options) as worker:
        yield worker


def test_interleaved_bodies(worker, flavour):
    """Each of fifty bodies finds its own trace by greenlet, asyncio task and context."""
    results = [worker.client.send(f"{flavour}_body") for _ in range(50)]

    for result in results:
        found, child = result.get(PATIENCE)
        for tools in found:
            assert tools["greenlet"] == result.id
            assert tools["context"] == result.id
            assert tools["thread"] is not None
            if flavour == "async":
                assert tools["asyncio"] == result.id
            else:
                assert tools["thread"] == result.id
        assert child["context"] == result.id
