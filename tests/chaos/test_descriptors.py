"""The worker's main process runs out of descriptors, and a process dies."""

import contextlib
import itertools
import os
import resource
import signal

import pytest
from ending import Ending, ending_well
from worker import wait_for


@pytest.fixture(scope="module")
def worker(transport, start_worker):
    worker = start_worker(transport, "chaos", "-E", "-c", 20, "--processes", 2)
    with ending_well(worker):
        yield worker


@contextlib.contextmanager
def limit_of(pid):
    """Gives a function that leaves process *pid* a number of free descriptors; at the end all."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)

    def leave(number):
        used = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
        free = (fd for fd in itertools.count() if fd not in used)
        # None from this one on; those that are open stay open.
        limit = next(itertools.islice(free, number, None))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))

    try:
        yield leave
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def failed_starts(worker):
    return worker.log().count("cannot start a worker process")


def warm_up(worker):
    """Let the worker report a lost task, for which it opens a connection."""
    result = worker.client.send("forever")
    wait_for(lambda: worker.records("started", id=result.id), worker.tail)
    os.kill(worker.records("started", id=result.id)[0]["pid"], signal.SIGKILL)
    result.get(propagate=False)
    wait_for(lambda: len(worker.up_processes()) == 2, worker.pool)


def test_no_descriptors(worker, tmp_path):
    """It is logged and tried again until there are some; no job is lost meanwhile."""
    warm_up(worker)
    with Ending(worker, tmp_path) as ending:
        gate = ending.gate()
        early, late = ending.send("hold", str(gate), count=10)
        ending.wait_started(*early, *late)
        victim = worker.pool_pids()[0]
        ids = {line["id"] for line in worker.records("started", pid=victim)}
        again = [result for result in late if result.id in ids]
        lost = [result for result in early if result.id in ids]
        others = [result for result in early + late if result.id not in ids]

        with limit_of(worker.process.pid) as leave:
            leave(0)
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda: victim not in worker.pool_pids(), worker.tail)
            # A start takes seven; then the process, too, needs some.
            wait_for(lambda: failed_starts(worker) == 1, worker.tail)
            leave(6)
            wait_for(lambda: failed_starts(worker) == 2, worker.tail)
            assert len(worker.pool_pids()) == 1
        gate.touch()

        ending.check(ended=others + again, lost=lost)
        assert ending.runs(*others, *lost) == len(others + lost)
        assert ending.runs(*again) == 2 * len(again)
