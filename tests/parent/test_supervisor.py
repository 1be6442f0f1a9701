"""celery_asyncpool/parent/supervisor.py: what it makes of messages and ends of processes."""

import os
import socket

import pytest

from celery_asyncpool.core.job import Callbacks, Job
from celery_asyncpool.core.lifecycle import EX_BOOT, Lifecycle
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

    def spawn(self, now, close_fds, index):
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
        return WorkerProcess(fake, Pipe(ours), report, os.dup(ours.fileno()), life, index)


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
    supervisor.on_readable(supervisor.processes[0])
    yield supervisor
    for process in supervisor.processes:
        process.close()


def set_clock(monkeypatch, supervisor, now):
    """Whoever looks at the clock sees the time in the list *now*."""
    for reader in (supervisor, supervisor.fleet):
        monkeypatch.setattr(reader, "_clock", lambda: now[0])


def jobs_of(supervisor, process):
    return list(supervisor.jobs.held(process.pid).jobs)


def submit(supervisor, told, *job_ids):
    for job_id in job_ids:
        callbacks = Callbacks(
            success=lambda value, job_id=job_id: told.append((job_id, "success")),
            error=lambda info, job_id=job_id: told.append((job_id, info.type.__name__)),
        )
        supervisor.submit(Job(job_id, dumps(None), limits=Limits(hard=1), callbacks=callbacks))
    supervisor.on_tick()


def test_messages_after_stuck_in_the_last_read_of_a_dead_process(supervisor, spawner):
    """What a process wrote before it died counts, also behind a STUCK in the same read."""
    told = []
    submit(supervisor, told, 1, 2)
    fake, theirs = spawner.children[0]
    [process] = supervisor.processes
    theirs.send(
        encode_time(Kind.ACK, 1, 0.0)
        + encode_time(Kind.ACK, 2, 0.0)
        + encode(Kind.STUCK, 1, dumps(("hard time limit", "here", None)))
        + encode(Kind.READY, 2, dumps((True, (False, "value", 0.1))))
    )
    theirs.close()
    fake.exitcode = -9

    supervisor.on_exit(process)

    assert told == [(1, "TimeLimitExceeded"), (2, "success")]
    assert len(supervisor.freed) == 2
    assert len(supervisor.jobs) == 0


def test_job_of_a_garbled_stream_does_not_run_again(supervisor, spawner):
    """When a stream breaks, its ACKs may be among what was lost: its jobs are lost, not rerun."""
    told = []
    submit(supervisor, told, 1)
    fake, theirs = spawner.children[0]
    [process] = supervisor.processes
    theirs.send(encode_time(Kind.ACK, 1, 0.0) + b"\xff" * 64)
    theirs.close()
    fake.exitcode = -9

    supervisor.on_exit(process)

    assert told == [(1, "WorkerLostError")]
    assert len(supervisor.jobs) == 0


def test_unaccepted_job_of_a_dead_process_waits_for_the_next(supervisor, spawner):
    """A job without an ACK goes to the replacement."""
    told = []
    submit(supervisor, told, 1)
    fake, _ = spawner.children[0]
    fake.exitcode = -9

    supervisor.on_exit(supervisor.processes[0])
    replacement = supervisor.processes[0]
    spawner.children[1][1].send(encode(Kind.WORKER_UP))
    supervisor.on_readable(replacement)
    supervisor.on_tick()

    assert told == []
    assert jobs_of(supervisor, replacement) == [1]


def crash(supervisor, spawner, exitcode=-9):
    """The newest process dies, and another one comes up."""
    fake, _ = spawner.children[-1]
    fake.exitcode = exitcode
    supervisor.on_exit(supervisor.processes[0])
    spawner.children[-1][1].send(encode(Kind.WORKER_UP))
    supervisor.on_readable(supervisor.processes[0])


def test_task_that_crashes_too_often(supervisor, spawner):
    """The third crash of a task is its last; it is told apart from those before."""
    told = []
    for job_id in (1, 2, 3):
        callbacks = Callbacks(
            error=lambda info: told.append("lost"),
            fail_for_good=lambda info: told.append(str(info.exception)),
        )
        job = Job(job_id, dumps(None), uuid="the same", callbacks=callbacks)
        supervisor.submit(job)
        supervisor.on_tick()
        spawner.children[-1][1].send(encode_time(Kind.ACK, job_id, 0.0))
        supervisor.on_readable(supervisor.processes[0])
        assert job.quarantined == (job_id == 3)
        crash(supervisor, spawner)

    assert told[:2] == ["lost", "lost"]
    assert "crash number 3 (asyncpool_max_crashes)" in told[2]
    assert len(supervisor.freed) == 3
    assert len(supervisor.jobs.crashes) == 0


def test_task_that_ends_between_crashes(supervisor, spawner):
    """A task that has ended is no suspect, whatever became of its process before."""
    told = []
    submit(supervisor, told, 1)
    spawner.children[-1][1].send(encode_time(Kind.ACK, 1, 0.0))
    supervisor.on_readable(supervisor.processes[0])
    crash(supervisor, spawner)
    assert len(supervisor.jobs.crashes) == 1

    submit(supervisor, told, 2)
    spawner.children[-1][1].send(
        encode_time(Kind.ACK, 2, 0.0) + encode(Kind.READY, 2, dumps((True, (False, "v", 0.1))))
    )
    supervisor.on_readable(supervisor.processes[0])

    assert told == [(1, "WorkerLostError"), (2, "success")]
    assert len(supervisor.jobs.crashes) == 0


def test_fork_that_fails_is_tried_again_later(supervisor, spawner, monkeypatch):
    """The system is asked again after a second, then after two; no job is lost."""
    now = [1000.0]
    tries = []

    def no_process(*args):
        tries.append(now[0])
        raise OSError(11, "Resource temporarily unavailable")

    set_clock(monkeypatch, supervisor, now)
    told = []
    submit(supervisor, told, 1)
    with monkeypatch.context() as patch:
        patch.setattr(spawner, "spawn", no_process)
        spawner.children[0][0].exitcode = -9
        supervisor.on_exit(supervisor.processes[0])
        for now[0] in (1000.5, 1001.0, 1001.5, 1002.9, 1003.0):
            supervisor.maintain()

    assert tries == [1000.0, 1001.0, 1003.0]
    now[0] = 1007.0
    supervisor.maintain()
    spawner.children[-1][1].send(encode(Kind.WORKER_UP))
    [process] = supervisor.processes
    supervisor.on_readable(process)
    supervisor.on_tick()
    assert jobs_of(supervisor, process) == [1]
    assert told == []


def test_process_that_does_not_read(supervisor, spawner):
    """A process whose socket is full gets no more jobs: what waits for it is bounded."""
    [process] = supervisor.processes
    big = dumps(b"x" * 1_000_000)
    for job_id in (1, 2, 3):
        supervisor.submit(Job(job_id, big))
        supervisor.on_tick()

    assert jobs_of(supervisor, process) == [1]
    assert supervisor.jobs.dispatcher.queued == 2
    assert process.pipe.unsent < len(big)

    theirs = spawner.children[0][1]
    theirs.setblocking(False)
    while process.pipe.unsent:
        theirs.recv(1_000_000)
        supervisor.on_writable(process)
    supervisor.on_tick()
    assert jobs_of(supervisor, process) == [1, 2, 3]


def test_late_messages_are_heard_before_anyone_is_judged(supervisor, spawner, monkeypatch):
    """When the hub could not run for a while, what waits in the pipes counts."""
    now = [1000.0]
    set_clock(monkeypatch, supervisor, now)
    told = []
    submit(supervisor, told, 1)
    [process] = supervisor.processes
    theirs = spawner.children[0][1]
    theirs.send(encode_time(Kind.ACK, 1, now[0]) + encode_time(Kind.STARTED, 1, now[0]))
    supervisor.on_readable(process)
    theirs.send(encode(Kind.READY, 1, dumps((True, (False, "value", 0.5)))))

    now[0] += 60
    supervisor.maintain()

    assert told == [(1, "success")]
    assert process.doom is None
    assert supervisor.processes == [process]


def test_messages_keep_their_order_when_celery_calls_back(supervisor, spawner):
    """What Celery does while it is told of a result cannot overtake the messages behind it."""
    told = []
    [process] = supervisor.processes
    theirs = spawner.children[0][1]

    def on_first(value):
        theirs.send(encode(Kind.READY, 3, dumps((True, (False, "value", 0.1)))))
        supervisor.resize(11)  # as an autoscaler may
        told.append("first")

    callbacks = [on_first, lambda value: told.append("second"), lambda value: told.append("third")]
    for job_id, callback in enumerate(callbacks, start=1):
        supervisor.submit(Job(job_id, dumps(None), callbacks=Callbacks(success=callback)))
    supervisor.on_tick()
    theirs.send(
        b"".join(encode_time(Kind.ACK, job_id, 0.0) for job_id in (1, 2, 3))
        + encode(Kind.READY, 1, dumps((True, (False, "value", 0.1))))
        + encode(Kind.READY, 2, dumps((True, (False, "value", 0.1))))
    )
    supervisor.on_readable(process)
    supervisor.on_readable(process)

    assert told == ["first", "second", "third"]


def test_cold_shutdown_hears_what_was_accepted(supervisor, spawner):
    """A job whose ACK waits in the pipe is acknowledged before it is dropped."""
    accepted = []
    callbacks = Callbacks(accept=lambda pid, when: accepted.append(pid))
    supervisor.submit(Job(1, dumps(None), callbacks=callbacks))
    supervisor.on_tick()
    [process] = supervisor.processes
    spawner.children[0][1].send(encode_time(Kind.ACK, 1, 0.0))

    supervisor.abort(lambda: None)

    assert accepted == [process.pid]
    assert len(supervisor.jobs) == 0


class FakeHub:
    """Remembers what it was asked to watch."""

    def __init__(self):
        self.readers, self.writers, self.on_tick = {}, {}, set()

    def add_reader(self, fd, function, *args):
        self.readers[fd] = function, args

    def call_repeatedly(self, seconds, function, *args):
        return self

    def cancel(self):
        """Nothing was started."""

    def remove(self, fd):
        self.readers.pop(fd, None)


def test_error_of_the_system_is_not_a_lost_broker(supervisor, caplog, monkeypatch):
    """Celery takes an OSError that leaves the hub for one: it must not leave."""
    hub = FakeHub()
    supervisor.attach(hub)
    [process] = supervisor.processes
    function, args = hub.readers[process.exit_fd]

    def no_descriptor():
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(process, "exitcode", no_descriptor)
    function(*args)

    assert "Too many open files" in caplog.text


def test_process_that_is_only_late(supervisor, spawner, monkeypatch):
    """A process that is not known to be blocked gets the grace time before it is killed."""
    now = [1000.0]
    killed = []
    set_clock(monkeypatch, supervisor, now)
    told = []
    submit(supervisor, told, 1)
    [process] = supervisor.processes
    monkeypatch.setattr(process, "kill", lambda: killed.append(now[0]))
    monkeypatch.setattr(process, "ask_for_stack", lambda: None)
    spawner.children[0][1].send(
        encode_time(Kind.ACK, 1, now[0]) + encode_time(Kind.STARTED, 1, now[0])
    )
    supervisor.on_readable(process)

    for now[0] in (1001.9, 1002.1, 1002.9):
        supervisor.maintain()
    assert killed == []
    now[0] = 1003.2
    supervisor.maintain()
    assert killed == [1003.2]


def test_job_whose_callback_tells_of_a_lost_broker(supervisor, spawner):
    """What Celery wants to know goes on to it, and the job has ended all the same."""

    def lost(value):
        raise ConnectionResetError("the broker")

    callbacks = Callbacks(success=lost, propagate=(ConnectionError,))
    supervisor.submit(Job(1, dumps(None), callbacks=callbacks))
    supervisor.on_tick()
    _, theirs = spawner.children[0]
    theirs.send(encode_time(Kind.ACK, 1, 0.0) + encode(Kind.READY, 1, dumps((True, None))))

    with pytest.raises(ConnectionResetError):
        supervisor.on_readable(supervisor.processes[0])

    assert len(supervisor.jobs) == 0
    assert len(supervisor.freed) == 1


def test_refused_job(supervisor):
    """It is accepted, since that is when Celery acknowledges early, and has failed, once."""
    told = []
    callbacks = Callbacks(
        accept=lambda pid, when: told.append("accepted"),
        error=lambda info: told.append(info.type.__name__),
    )

    supervisor.submit(Job(1, b"", callbacks=callbacks), TypeError("cannot be sent"))

    assert told == ["accepted", "TypeError"]
    assert len(supervisor.jobs) == 0
    assert len(supervisor.freed) == 1


ENDED = dumps((True, (False, "value", 0.1)))


def ready(*job_ids):
    acks = b"".join(encode_time(Kind.ACK, job_id, 0.0) for job_id in job_ids)
    return acks + b"".join(encode(Kind.READY, job_id, ENDED) for job_id in job_ids)


def make(spawner, limit=10, processes=1, **options):
    """Processes that have not come up."""
    options = {"on_slot_free": lambda: None, "on_give_up": lambda: None, **options}
    supervisor = Supervisor(
        spawner, limit, processes, max_crashes=3, drain_timeout=9.0, cancel_grace=1.0, **options
    )
    supervisor.maintain()
    return supervisor


def bring_up(supervisor, spawner):
    spawner.children[0][1].send(encode(Kind.WORKER_UP))
    supervisor.on_readable(supervisor.processes[0])


def test_error_while_a_slot_is_given_back(spawner):
    """What Celery raises in semaphore.release() costs no other job its outcome, nor its slot."""
    calls, told = [], []

    def on_slot_free():
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("mark_as_revoked of the next request: no backend")

    supervisor = make(spawner, on_slot_free=on_slot_free)
    bring_up(supervisor, spawner)
    submit(supervisor, told, 1, 2)
    spawner.children[0][1].send(ready(1, 2))
    supervisor.on_readable(supervisor.processes[0])

    assert told == [(1, "success"), (2, "success")]
    assert len(calls) == 2


def test_celery_asks_for_maintenance_while_a_dead_process_is_read(supervisor, spawner):
    """No message of a dead process is lost, whoever calls maintain() meanwhile."""
    told = []
    callbacks = [
        lambda value: (supervisor.maintain(), told.append(1)),
        lambda value: told.append(2),
    ]
    for job_id, callback in enumerate(callbacks, start=1):
        supervisor.submit(Job(job_id, dumps(None), callbacks=Callbacks(success=callback)))
    supervisor.on_tick()
    fake, theirs = spawner.children[0]
    theirs.send(ready(1, 2))
    fake.exitcode = -9

    supervisor.on_exit(supervisor.processes[0])

    assert told == [1, 2]


def test_one_bad_moment_of_eight_processes(spawner):
    """A lifespan that fails once in each process is tried again."""
    gave_up = []
    supervisor = make(spawner, 8, 8, on_give_up=lambda: gave_up.append(True))
    for fake, _ in list(spawner.children):
        fake.exitcode = EX_BOOT

    supervisor.maintain()

    assert gave_up == []


def test_process_that_fails_slowly_each_time(spawner):
    """It is given up in the end, however long each start takes."""
    now, gave_up = [1000.0], []
    supervisor = make(spawner, clock=lambda: now[0], on_give_up=lambda: gave_up.append(now[0]))
    for _ in range(100):
        spawner.children[-1][0].exitcode = EX_BOOT
        supervisor.maintain()
        now[0] += 31.0
        supervisor.maintain()

    assert len(gave_up) == 1
    assert len(spawner.children) == 6


def test_warm_shutdown_when_no_process_can_start_any_more(spawner, caplog):
    """It ends: what no process has accepted goes back to the broker."""
    now, finished, gave_up = [1000.0], [], []
    supervisor = make(spawner, clock=lambda: now[0], on_give_up=lambda: gave_up.append(True))
    bring_up(supervisor, spawner)
    submit(supervisor, [], 1)  # sent, never accepted
    supervisor.finish(lambda: finished.append(True))
    spawner.children[0][0].exitcode = -9
    for _ in range(120):
        supervisor.maintain()
        if supervisor.processes:
            spawner.children[-1][0].exitcode = EX_BOOT
        now[0] += 1.0

    assert (gave_up, finished) == ([True], [True])
    assert "1 tasks that none has begun go back to the broker" in caplog.text


def test_process_that_we_killed_is_not_out_of_memory(spawner, caplog):
    """Nobody looks for memory where our own time limit has ended the start."""
    now = [1000.0]
    supervisor = make(spawner, clock=lambda: now[0])
    [process] = supervisor.processes
    now[0] += 60
    process.kill = lambda: None
    supervisor.maintain()
    spawner.children[0][0].exitcode = -9
    supervisor.on_exit(process)

    assert "did not start within" in caplog.text
    assert "out of memory" not in caplog.text


def test_process_whose_exit_code_somebody_else_has_taken(supervisor, spawner, caplog):
    """It is replaced all the same, and its jobs are lost: no loop spins over it."""
    told = []
    submit(supervisor, told, 1)
    [process] = supervisor.processes
    spawner.children[0][1].send(encode_time(Kind.ACK, 1, 0.0))

    supervisor.on_exit(process)  # no child of ours: the system knows no exit code

    assert told == [(1, "WorkerLostError")]
    assert process not in supervisor.processes


def test_kill_all_in_a_fork_of_the_main_process(supervisor, tmp_path):
    """atexit in a fork of the worker's main process kills nobody's workers."""
    killed = tmp_path / "killed"
    supervisor.processes[0].kill = killed.touch
    pid = os.fork()
    if pid == 0:
        try:
            supervisor.kill_all()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)

    assert not killed.exists()
