"""celery_asyncpool/parent/process.py: starting a process, and what is left when that fails."""

from __future__ import annotations

import errno
import gc
import os
import resource
import select
import signal

import pytest
from celery import Celery

from celery_asyncpool.child.inherited import forget_parent
from celery_asyncpool.handover import ChildOptions
from celery_asyncpool.parent.process import Spawner

OPTIONS = ChildOptions(
    "test@host",
    threads=1,
    loop="asyncio",
    cancel_grace=1.0,
    block_warning=0,
    lifespan_timeout=30.0,
    redis_batching=True,
    gc_threshold=0,
)


def wait_for_signal(app, end, options):
    """A child that does nothing."""
    signal.pause()


@pytest.fixture
def spawner():
    return Spawner("fork", wait_for_signal, Celery(), OPTIONS, start_timeout=4.0)


def open_fds() -> int:
    gc.collect()  # what earlier tests have left is not closed in the middle of one
    return len(os.listdir("/dev/fd"))


def test_process_gives_all_descriptors_back(spawner):
    """When a process has gone, nothing of it is left open."""
    before = open_fds()
    process = spawner.spawn(0.0, (), 0)
    assert open_fds() > before

    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert process.exitcode() == -signal.SIGKILL
    process.close()

    assert open_fds() == before


def say_hello(app, end, options):
    """A child that tells when it runs: billiard's hooks have been called."""
    end.sock.sendall(b"hello")
    signal.pause()


def test_connections_in_pools_survive_a_fork(rabbitmq_url):
    """A fork shuts down no AMQP connection of its parent: what was written there arrives."""
    app = Celery(broker=rabbitmq_url, set_as_current=False)
    spawner = Spawner("fork", say_hello, app, OPTIONS, start_timeout=4.0, let_go=forget_parent)
    with app.pool.acquire() as connection:
        channel = connection.default_channel
        before = connection.connection.sock
        process = spawner.spawn(0.0, (), 0)
        try:
            assert select.select([process.pipe], [], [], 30)[0], "the child does not run"

            name = channel.queue_declare("", exclusive=True).queue
        finally:
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            process.exitcode()
            process.close()

        assert name.startswith("amq.gen")
        assert connection.connection.sock is before
    app.pool.force_close_all()


def test_fork_that_fails(spawner, monkeypatch):
    """A system without room for a process says so, and no descriptor is lost over it."""
    before = open_fds()

    def no_fork():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", no_fork)

    for _ in range(3):
        with pytest.raises(OSError, match="Resource temporarily unavailable"):
            spawner.spawn(0.0, (), 0)

    assert open_fds() == before


@pytest.mark.parametrize("room", range(1, 8))
def test_no_room_for_descriptors(spawner, room):
    """However few descriptors are left: a process that is known, or an error and nothing else."""
    before = open_fds()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/dev/fd")) + 1
    fillers = [os.dup(0) for _ in range(highest)]
    last = max(fillers)
    process = error = None
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1 + room, hard))
    try:
        process = spawner.spawn(0.0, (), 0)
    except OSError as exc:
        error = exc
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)

    if process is None:
        assert error.errno == errno.EMFILE
    else:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process.exitcode() == -signal.SIGKILL
        process.close()
    assert open_fds() == before
