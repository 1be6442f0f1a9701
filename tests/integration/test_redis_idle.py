"""A worker with batches that is idle leaves Redis in peace, as kombu's transport does."""

import contextlib
import time
from collections import Counter

import pytest
import redis as redis_client
from worker import Transport

from tests.conftest import require
from tests.servers import RedisServer

#: Seconds that are counted, twice: kombu has some commands for every few minutes, the
#: same with and without batches, and those fall into one of the two.
SECONDS = 10

#: More than these and a transport polls: what falls on either side of the count.
MARGIN = 4


class Idle:
    """A worker alone on its Redis."""

    def __init__(self, stack, start_worker, queues, batching):
        server = stack.enter_context(RedisServer())
        self._client = stack.enter_context(redis_client.Redis.from_url(server.url))
        transport = Transport("redis", f"{server.url}/0", f"{server.url}/1")
        args = ("-c", 10, "--processes", 1, "--without-gossip", "--without-heartbeat")
        env = {"BATCHES_CONF": f"asyncpool_redis_batching={batching}"}
        self.worker = stack.enter_context(
            start_worker(transport, "batches", "-Q", ",".join(queues), *args, env=env)
        )
        for queue in queues:
            self.worker.client.send("late", queue=queue).get()

    def count(self):
        """How often each command was called so far."""
        stats = self._client.info("commandstats")
        calls = {name.removeprefix("cmdstat_"): value["calls"] for name, value in stats.items()}
        return Counter(calls)


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


QUEUES = (["one"], ["one", "two", "three"])


def test_idle_worker(stack, start_worker):
    """It sends no more commands than without batches, be it of one queue or of several."""
    require(RedisServer)
    workers = [
        Idle(stack, start_worker, queues, batching)
        for queues in QUEUES
        for batching in (False, True)
    ]
    counts = []
    for _ in range(2):
        before = [worker.count() for worker in workers]
        time.sleep(SECONDS)  # of idleness, which is the subject
        after = [worker.count() for worker in workers]
        counts.append([new - old for old, new in zip(before, after, strict=True)])

    calls = [min(both, key=Counter.total) for both in zip(*counts, strict=True)]
    for queues, plain, batched in zip(QUEUES, calls[::2], calls[1::2], strict=True):
        print(f"{len(queues)} queues: without batches {plain}, with {batched}")
        assert 0 < batched.total() <= plain.total() + MARGIN
