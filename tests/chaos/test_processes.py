"""The system has no room for another process, and one dies."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess

import pytest
from ending import Ending, ending_well
from worker import wait_for

#: A user who has no other process; nobody has to know of it.
UID = 0x70000000 + os.getpid() % 0x10000


def as_other_user(command):
    """*command* run as a user of its own, as root only: a limit does not bind root.

    It keeps root's access to files, since those of the tests are root's.
    """
    if os.geteuid() != 0:
        return command
    access = "+dac_override,+dac_read_search"
    return [
        "setpriv",
        *("--reuid", str(UID), "--clear-groups"),
        *("--inh-caps", access, "--ambient-caps", access),
        *command,
    ]


@pytest.fixture(scope="module")
def worker(transport, start_worker):
    for program in ("prlimit", "setpriv"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}, which is not installed")
    worker = start_worker(transport, "chaos", "-E", "-c", 20, "--processes", 2)
    worker.command = as_other_user(worker.command)
    with ending_well(worker):
        yield worker


@contextlib.contextmanager
def no_more_processes(pid):
    """Process *pid* cannot fork, since its user has a process already: itself."""
    before, _ = resource.getrlimit(resource.RLIMIT_NPROC)  # which it has inherited
    _limit_processes(pid, 1)
    try:
        yield
    finally:
        _limit_processes(pid, before if before != resource.RLIM_INFINITY else "unlimited")


def _limit_processes(pid, number):
    """Set the soft limit; by the user whose process it is, since root in a container may not."""
    command = ["prlimit", "--pid", str(pid), f"--nproc={number}:"]
    subprocess.run(as_other_user(command), check=True)


def test_no_processes(worker, tmp_path):
    """It is logged and tried again until there is room; no job is lost meanwhile."""
    with Ending(worker, tmp_path) as ending:
        gate = ending.gate()
        early, late = ending.send("hold", str(gate), count=10)
        ending.wait_started(*early, *late)
        victim = worker.pool_pids()[0]
        ids = {line["id"] for line in worker.records("started", pid=victim)}
        again = [result for result in late if result.id in ids]
        lost = [result for result in early if result.id in ids]
        others = [result for result in early + late if result.id not in ids]

        with no_more_processes(worker.process.pid):
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda: worker.log().count("cannot start a worker process") == 2, worker.tail)
            assert len(worker.pool_pids()) == 1
        gate.touch()

        ending.check(ended=others + again, lost=lost)
        assert ending.runs(*others, *lost) == len(others + lost)
        assert ending.runs(*again) == 2 * len(again)
