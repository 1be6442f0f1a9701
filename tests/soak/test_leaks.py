"""What a soak calls leaked, on a process that stands for a worker and leaks when it is told."""

import subprocess
import sys

import pytest

from .faults import children
from .leaks import Leaks

#: Runs each line that it reads, and says when it has.
PROGRAM = """
import os, subprocess, sys
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class FakeWorker:
    """Has 60 slots and no worker process, and is alone but for what it leaks."""

    def __init__(self, process):
        self.process = process
        self.prefetch = 240
        self.slots = 60
        self.states = []

    def do(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def stats(self):
        processes = {str(pid): {"state": state} for pid, state in enumerate(self.states)}
        pool = {"max-concurrency": self.slots, "worker-processes": processes}
        return {"prefetch_count": self.prefetch, "pool": pool}

    def family(self):
        return [self.process.pid, *children(self.process.pid)]


@pytest.fixture
def worker():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        worker = FakeWorker(process)
        worker.do("pass")
        yield worker


@pytest.fixture
def leaks(worker):
    return Leaks(worker, 60, lambda: (0, 0), patience=0.0)


def test_nothing_leaked(leaks):
    """All is as it was."""
    assert leaks.find() == []


def test_leaked_descriptor(worker, leaks):
    """One that was not open before."""
    worker.do("os.pipe()")

    [found] = leaks.find()

    assert "descriptors pipe" in found


def test_leaked_subprocess(worker, leaks):
    """One that runs on, and then one that is dead and was not reaped."""
    worker.do("left = subprocess.Popen(['sleep', '600'])")
    # The kernel may not yet tell the arguments of what it has just started.
    worker.do("while b'sleep' not in open(f'/proc/{left.pid}/cmdline', 'rb').read(): pass")
    running = leaks.find()
    worker.do("left.kill(); os.waitid(os.P_PID, left.pid, os.WEXITED | os.WNOWAIT)")
    dead = leaks.find()
    worker.do("left.wait()")

    assert all("sleep 600" in text for text in running)
    assert [text.partition(":")[0] for text in running] == [
        "subprocesses",
        "children, perhaps dead ones",
    ]
    assert "(Z" in dead[-1]
    assert leaks.find() == []


def test_leaked_slots_prefetch_and_processes(worker, leaks):
    """What the worker says of itself."""
    worker.slots, worker.prefetch, worker.states = 59, 238, ["draining"]

    assert len(leaks.find()) == 3
