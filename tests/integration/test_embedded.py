"""A worker in another program's process, as `celery.contrib.testing` has it in a thread."""

import json
import os
import subprocess
import sys
from pathlib import Path

import celery
import pytest
from worker import PATIENCE

CELERY = tuple(map(int, celery.__version__.split(".")[:2]))

#: Starts a worker twice, says how the process is before, while it runs and after it,
#: and what has become of the exit code of a subprocess of its own.
PROGRAM = Path(__file__).parent / "apps" / "embedding.py"


@pytest.fixture
def run_program(redis_transport):
    """Run the program with its worker in this thread; return what it has said."""

    def run(thread, start="fork"):
        env = {**os.environ, **redis_transport.environment(), "C_FORCE_ROOT": "1"}
        done = subprocess.run(
            [sys.executable, str(PROGRAM), thread, start],
            env=env,
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_worker_in_a_thread(run_program):
    """The process is its program's: its garbage collector and orphans are left alone."""
    said = run_program("another")

    assert said["results"] == [3, 3]
    for state in ("gc thresholds", "frozen", "subreaper"):
        assert said["during"][state] == said["before"][state], state
    assert said["after"] == said["before"]


def test_worker_in_the_main_thread(run_program):
    """When the worker has ended, the process is again as its program had made it."""
    said = run_program("main")

    assert said["results"] == [3, 3]
    assert said["after"] == said["before"]


@pytest.mark.skipif(CELERY < (5, 7), reason="worker_pool_start_method is new in Celery 5.7")
def test_worker_that_spawns(run_program):
    """When the worker has ended, Celery takes the process for no spawned one any more."""
    said = run_program("another", "spawn")

    assert said["results"] == [3, 3]
    assert said["during"]["FORKED_BY_MULTIPROCESSING"] == "1"
    assert said["after"]["FORKED_BY_MULTIPROCESSING"] is None


def test_exit_codes_of_a_program_with_a_worker_in_a_thread(run_program):
    """A subprocess of the program, for which nobody has waited yet, keeps its exit code."""
    assert run_program("another")["exit code"] == 7


def test_records_of_a_worker_for_tests(run_program):
    """What tasks and Celery's tracer log is seen by the program's handlers, each once."""
    logged = run_program("another")["logged"]

    assert logged.count(["embedding", "ERROR", "1 and 2"]) == 2  # of two workers
    failures = [line for name, level, line in logged if "BadError" in line and level == "ERROR"]
    assert len(failures) == 2
    assert all("embedding.fail" in line for line in failures)
