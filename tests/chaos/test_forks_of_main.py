"""Forks of the worker's main process hold copies of its descriptors, and end like programs."""

import os
import signal

import pytest
from worker import wait_for


@pytest.fixture
def worker(transport, start_worker):
    with start_worker(transport, "forking", "-c", 4, "--processes", 2) as worker:
        [forked] = wait_for(lambda: worker.records("forked"), "the main process to fork")
        worker.sleeper = forked["sleeper"]
        try:
            yield worker
        finally:
            os.kill(worker.sleeper, signal.SIGKILL)


def test_fork_that_ends(worker):
    """Its exit kills nobody: the worker serves on, in the same processes."""
    pids = {worker.client.send("wait", 0.1).get(timeout=60) for _ in range(8)}

    assert pids <= set(worker.pool_pids())


def test_main_process_is_killed(worker):
    """Its processes notice although a fork of it holds the other ends of their pipes."""
    worker.client.send("wait", 600)
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.wait_exit()

    wait_for(
        lambda: worker.family() == [worker.sleeper],
        lambda: f"only the fork to be left of these: {worker.family()}",
    )
