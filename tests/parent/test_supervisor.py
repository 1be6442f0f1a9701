"""celery_asyncpool/parent/supervisor.py: what it makes of messages and ends of processes."""

import os
import socket

import pytest

from celery_asyncpool.core.job import Callbacks, Job
from celery_asyncpool.core.lifecycle import Lifecycle
from celery_asyncpool.core.protocol import Kind, dumps, encode, encode_time
from celery_asyncpool.core.timelimits import Limits
from celery_asyncpool.parent.process import WorkerProcess
from celery_asyncpool.parent.supervisor import Supervisor
from celery_asyncpool.pipe import Pipe


class FakeBilliardProcess:
    """A process that only its exit code tells of; its exit is announced on *sentinel*."""

    def __init__(self, pid, sentinel):
        self.pid = pid
        self.sentinel = sentinel
        self.exitcode = None

    def join(self):
        os.close(self.sentinel)


class FakeSpawner:
    """Gives processes whose other end of the pipe the test writes."""

    start_timeout = 4.0

    def __init__(self):
        self.children = []

    def spawn(self, now, close_fds):
        ours, theirs = socket.socketpair()
        report, report_end = os.pipe()
        sentinel, sentinel_end = os.pipe()
        os.set_blocking(report, False)
        os.close(report_end)
        os.close(sentinel_end)
        # Above any pid that Linux gives, so that nobody is meant by it.
        fake = FakeBilliardProcess(2**22 + 1 + len(self.children), sentinel)
        self.children.append((fake, theirs))
        life = Lifecycle(fake.pid, now=now, start_timeout=self.start_timeout)
        return WorkerProcess(fake, Pipe(ours), report, os.dup(ours.fileno()), life)


@pytest.fixture
def spawner():
    spawner = FakeSpawner()
    yield spawner
    for _, theirs in spawner.children:
        theirs.close()


@pytest.fixture
def supervisor(spawner):
    """One process that is up, ten slots."""
    freed = []
    supervisor = Supervisor(
        spawner,
        limit=10,
        max_processes=1,
        max_crashes=3,
        drain_timeout=9.0,
        cancel_grace=1.0,
        on_slot_free=lambda: freed.append(True),
        on_give_up=lambda: None,
    )
    supervisor.freed = freed
    supervisor.maintain()
    spawner.children[0][1].send(encode(Kind.WORKER_UP))
    supervisor._on_readable(supervisor.processes[0])
    yield supervisor
    for process in supervisor.processes:
        process.close()


def submit(supervisor, told, *job_ids):
    for job_id in job_ids:
        callbacks = Callbacks(
            success=lambda value, job_id=job_id: told.append((job_id, "success")),
            error=lambda info, job_id=job_id: told.append((job_id, info.type.__name__)),
        )
        supervisor.submit(Job(job_id, dumps(None), limits=Limits(hard=1), callbacks=callbacks))
    supervisor._on_tick()


def test_messages_after_stuck_in_the_last_read_of_a_dead_process(supervisor, spawner):
    """What a process wrote before it died counts, also behind a STUCK in the same read."""
    told = []
    submit(supervisor, told, 1, 2)
    fake, theirs = spawner.children[0]
    [process] = supervisor.processes
    theirs.send(
        encode_time(Kind.ACK, 1, 0.0)
        + encode_time(Kind.ACK, 2, 0.0)
        + encode(Kind.STUCK, 1, dumps(("hard time limit", "here")))
        + encode(Kind.READY, 2, dumps((True, (False, "value", 0.1))))
    )
    theirs.close()
    fake.exitcode = -9

    supervisor._on_exit(process)

    assert told == [(1, "TimeLimitExceeded"), (2, "success")]
    assert len(supervisor.freed) == 2
    assert supervisor.unfinished == 0


def test_job_of_a_garbled_stream_does_not_run_again(supervisor, spawner):
    """When a stream breaks, its ACKs may be among what was lost: its jobs are lost, not rerun."""
    told = []
    submit(supervisor, told, 1)
    fake, theirs = spawner.children[0]
    [process] = supervisor.processes
    theirs.send(encode_time(Kind.ACK, 1, 0.0) + b"\xff" * 64)
    theirs.close()
    fake.exitcode = -9

    supervisor._on_exit(process)

    assert told == [(1, "WorkerLostError")]
    assert supervisor.unfinished == 0


def test_unaccepted_job_of_a_dead_process_waits_for_the_next(supervisor, spawner):
    """A job without an ACK goes to the replacement."""
    told = []
    submit(supervisor, told, 1)
    fake, _ = spawner.children[0]
    fake.exitcode = -9

    supervisor._on_exit(supervisor.processes[0])
    replacement = supervisor.processes[0]
    spawner.children[1][1].send(encode(Kind.WORKER_UP))
    supervisor._on_readable(replacement)
    supervisor._on_tick()

    assert told == []
    assert list(replacement.jobs) == [1]
