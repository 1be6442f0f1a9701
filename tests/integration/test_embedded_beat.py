"""`celery worker -B`: Celery's beat in a process beside the pool's."""

import json
import os
import signal

import pytest
from worker import wait_for

ENTRIES = {"every": {"task": "apps.scheduled.async_tick", "schedule": 0.2}}


@pytest.fixture
def worker(new_transport, start_worker, tmp_path, transport):
    """A worker with beat, on each transport, whose queue may keep messages at the end."""
    options = ("-c", 4, "--processes", 2, "-B", "-s", tmp_path / "schedule")
    env = {"SCHEDULED_ENTRIES": json.dumps(ENTRIES)}
    with start_worker(new_transport(transport.name), "scheduled", *options, env=env) as worker:
        yield worker


def beat_pid(worker):
    wait_for(lambda: worker.records("beat"), worker.tail)
    [line] = worker.records("beat")
    return line["pid"]


def wait_ran(worker, times):
    """Wait until the task of the schedule has run *times* more."""
    count = len(worker.records("ran")) + times
    wait_for(lambda: len(worker.records("ran")) >= count, worker.tail)


def is_gone(pid):
    """Whether there is no such process, nor what is left of one."""
    return not os.path.exists(f"/proc/{pid}")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGQUIT])
def test_beat_stops_with_the_worker(worker, signum):
    """Each of its tasks runs once, in the pool; a warm or cold shutdown ends beat, too."""
    pid = beat_pid(worker)
    wait_ran(worker, 10)
    assert pid not in worker.pool_pids()

    worker.process.send_signal(signum)

    worker.wait_exit()
    wait_for(lambda: is_gone(pid), worker.tail)
    ids = [line["id"] for line in worker.records("ran")]
    assert len(ids) == len(set(ids))
    for complaint in ("Traceback", "CRITICAL", "ERROR"):
        assert complaint not in worker.log()


def test_beat_outlives_the_processes(worker):
    """A process that dies and a restart of all of them are nothing to beat."""
    pid = beat_pid(worker)
    wait_ran(worker, 2)
    first, _ = pids = worker.pool_pids()

    os.kill(first, signal.SIGKILL)
    wait_for(lambda: first not in worker.pool_pids(), worker.tail)
    wait_ran(worker, 2)
    worker.client.app.control.pool_restart(destination=[worker.hostname])
    wait_for(lambda: not {*pids} & {*worker.pool_pids()}, worker.tail)

    wait_ran(worker, 2)
    assert not is_gone(pid)


def test_main_process_killed(worker):
    """No beat outlives it: the worker that comes next has its own."""
    pid = beat_pid(worker)
    wait_ran(worker, 2)

    worker.process.kill()

    worker.wait_exit()
    wait_for(lambda: is_gone(pid) and not worker.family(), worker.tail)
