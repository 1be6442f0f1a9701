"""What a worker process has of its parent, and what it must not have."""

import os
import signal
from urllib.parse import urlsplit

import pytest
from worker import wait_for

TIMEOUT = 60


@pytest.mark.parametrize("name", ["redis", "rabbitmq"])
def test_no_connection_of_the_parent(request, start_worker, tmp_path, name):
    """A process that was forked while the worker is connected holds none of its connections."""
    from transports import make_transport

    transport = make_transport(name, request, tmp_path)
    with start_worker(transport, "processes", "-c", 2, "--processes", 2, "-E") as worker:
        first = look(worker)
        for number in (1, 2, 3):
            victim = worker.pool_pids()[0]
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda victim=victim: is_replaced(worker, victim), worker.tail)
            assert worker.log().count("is gone: signal 9") == number

        last = look(worker)

        assert first["pid"] != last["pid"]
        broker, backend = (urlsplit(url).port for url in (transport.broker, transport.backend))
        # With one server for both, its own connection for results is there.
        assert last["ports"].count(broker) <= (1 if broker == backend else 0)
        for kind in ("anon_inode:[eventpoll]", "anon_inode:[pidfd]", "pipe", "socket"):
            assert last["kinds"].get(kind, 0) <= first["kinds"].get(kind, 0), (kind, first, last)
        assert last["frozen"] > 10_000


def look(worker):
    """What the processes hold that serve a few tasks, the last one's."""
    return [worker.client.send("inherited").get(timeout=TIMEOUT) for _ in range(4)][-1]


def is_replaced(worker, victim):
    return victim not in worker.pool_pids() and len(worker.up_processes()) == 2
