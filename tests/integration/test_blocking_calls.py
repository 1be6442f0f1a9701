"""Blocking calls in async bodies are named, and no others."""

import pytest
from worker import PATIENCE

BLOCKS = "apps/client.py"


@pytest.fixture(scope="module")
def worker(redis_transport, start_worker):
    with start_worker(redis_transport, "client", "-c", "10", "--processes", "1") as worker:
        yield worker


def warnings(worker):
    return [line for line in worker.log().splitlines() if "blocks the event loop" in line]


def test_calls_that_do_not_block(worker):
    """The twins, retries and plain `def` tasks give no warning."""
    for name, args in (("dispatches", (3,)), ("sums", (3,)), ("retries", ())):
        worker.client.send(name, *args).get(PATIENCE)
    worker.client.send("publishes_in_a_thread").get(PATIENCE)

    assert warnings(worker) == []


def test_delay_in_an_async_body(worker):
    """`.delay()` is named once, with its file, line, task and twin."""
    before = len(warnings(worker))

    worker.client.send("blocks_twice").get(PATIENCE)
    worker.client.send("blocks_twice").get(PATIENCE)

    [line] = warnings(worker)[before:]
    assert BLOCKS in line
    assert "await apps.client.add.adelay(...)" in line


def test_get_in_an_async_body(worker):
    """`.get()` on the loop of a pool process is an error."""
    with pytest.raises(RuntimeError, match=r"await get\(result\)"):
        worker.client.send("waits_blocking").get(PATIENCE)


def test_get_on_a_loop_in_a_thread(worker):
    """`.get()` on a loop that a `def` body runs is named: it blocks this loop only."""
    before = len(warnings(worker))

    assert worker.client.send("waits_on_its_own_loop").get(PATIENCE) == 3

    [line] = warnings(worker)[before:]
    assert "use `await get(result)`" in line


def test_error(new_transport, start_worker):
    """With "error" the call raises."""
    settings = {"ASYNCPOOL_TEST_SETTINGS": "asyncpool_blocking_calls='error'"}
    with start_worker(new_transport("redis"), "client", "-c", "4", env=settings) as worker:
        with pytest.raises(RuntimeError, match=r"await apps.client.add.adelay"):
            worker.client.send("blocks").get(PATIENCE)
