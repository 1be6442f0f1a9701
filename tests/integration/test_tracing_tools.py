"""Tools that follow each line or call (`sys.settrace`, cProfile) work in tasks, beside limits."""

import pytest
from worker import PATIENCE

TOOLS = ("with_profile", "with_trace", "with_profile_function")


@pytest.fixture(scope="module")
def worker(redis_transport, start_worker):
    with start_worker(redis_transport, "traced", "-c", "20", "--processes", "1") as worker:
        yield worker


@pytest.mark.parametrize("tool", TOOLS)
def test_after_a_def_task(worker, flavour, tool):
    """They end, and see something, where a `def` task has run before."""
    worker.client.send("plain").get(PATIENCE)

    assert worker.client.send(f"{flavour}_tool", tool).get(PATIENCE) is True


@pytest.mark.parametrize("tool", TOOLS)
def test_beside_a_limit_that_does_not_arrive(worker, flavour, tool):
    """They end while a `def` body is past its soft limit in a call into C; it hears of it."""
    result = worker.client.send("deaf", 2)
    worker.wait_log(f"Soft time limit (0.2s) exceeded for apps.traced.deaf[{result.id}]")

    assert worker.client.send(f"{flavour}_tool", tool).get(PATIENCE) is True
    assert not result.ready()
    assert result.get(PATIENCE) == "soft limit"
    assert worker.client.send(f"{flavour}_tool", tool).get(PATIENCE) is True
