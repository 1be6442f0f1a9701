"""celery_asyncpool/parent/adopted.py: dead children that are not the pool's own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from celery_asyncpool.parent.adopted import PATIENCE, Adopted

SCRIPT = """
import os, signal, subprocess, sys, time
from celery_asyncpool.parent.adopted import Adopted, become_subreaper

assert become_subreaper()
# A child that starts a grandchild, names it, and dies.
child = os.fork()
if child == 0:
    grandchild = subprocess.Popen(["sleep", "600"], start_new_session=True)
    print(grandchild.pid, flush=True)
    os._exit(0)
os.waitpid(child, 0)
pid = int(sys.stdin.readline())
adopted = Adopted()
adopted.expect([pid])
assert adopted.reap(0.0, own=[]) == []
os.kill(pid, signal.SIGKILL)
reaped = []
while not reaped:
    reaped = adopted.reap(0.0, own=[])
print("reaped", reaped == [pid], flush=True)
"""


class Children:
    """Children that exist only here; the dead ones are those in *dead*."""

    def __init__(self, *pids: int) -> None:
        self.pids = list(pids)
        self.dead: set[int] = set()

    def __call__(self) -> list[int]:
        return self.pids


@pytest.fixture
def reaped(monkeypatch):
    """The pids that were waited for."""
    pids: list[int] = []

    def waitpid(pid, flags):
        assert flags == os.WNOHANG
        pids.append(pid)
        return pid, 0

    monkeypatch.setattr(os, "waitpid", waitpid)
    return pids


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux adopts")
def test_real_grandchild():
    """What a dead child has left is adopted, and reaped when it has died."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        pid = process.stdout.readline()
        process.stdin.write(pid)
        process.stdin.flush()

        assert process.stdout.readline() == "reaped True\n"
        assert process.wait(30) == 0
    assert not os.path.exists(f"/proc/{pid.strip()}")


def test_own_processes_are_not_touched(reaped):
    """The pool's own processes are waited for elsewhere."""
    children = Children(1, 2)
    children.dead = {1, 2}
    adopted = Adopted(children, children.dead.__contains__)
    adopted.expect([1, 2])

    assert adopted.reap(0.0, own=[1]) == [2]
    assert reaped == [2]


def test_unknown_child_is_left_to_its_owner_for_a_while(reaped):
    """Somebody may yet ask for the exit code of a subprocess that is not the pool's."""
    children = Children(7)
    children.dead = {7}
    adopted = Adopted(children, children.dead.__contains__, lambda pid: False)

    early = [adopted.reap(now, own=[]) for now in (100.0, 100.0 + PATIENCE - 0.1)]
    late = adopted.reap(100.0 + PATIENCE, own=[])

    assert early == [[], []]
    assert late == [7]


def test_programs_own_subprocess():
    """A program that waits late for its subprocess gets its exit code."""
    child = subprocess.Popen(["false"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    adopted = Adopted(children=lambda: [child.pid])

    assert [adopted.reap(now, own=[]) for now in (0.0, PATIENCE, 10 * PATIENCE)] == [[], [], []]
    assert child.wait() == 1


def test_living_children_are_left_alone(reaped):
    """Nobody waits for what still runs, however long it does."""
    children = Children(7)
    adopted = Adopted(children, children.dead.__contains__)
    adopted.expect([7])

    assert [adopted.reap(now, own=[]) for now in (0.0, 1000.0)] == [[], []]
    assert reaped == []


def test_pid_that_comes_again(reaped):
    """A pid is not known any more once its process was reaped."""
    children = Children(7)
    children.dead = {7}
    adopted = Adopted(children, children.dead.__contains__)
    adopted.expect([7])
    adopted.reap(0.0, own=[])
    children.pids.clear()
    adopted.reap(1.0, own=[])
    children.pids.append(7)

    assert adopted.reap(2.0, own=[]) == []
