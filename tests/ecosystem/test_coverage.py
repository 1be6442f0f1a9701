"""coverage: what bodies have run in worker processes is in its report after a warm stop."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from worker import HERE, PATIENCE

from tests.conftest import require_module

APP = HERE / "apps" / "traced.py"

#: Ways to have other processes measured, as coverage's own pages show them.
CONFIGURATIONS = {
    "default": "parallel = true",
    "multiprocessing": "parallel = true\nconcurrency = multiprocessing, thread\nsigterm = true",
    "greenlet": "parallel = true\nconcurrency = thread, greenlet",
    "patched": "parallel = true\npatch = _exit, subprocess",
}


@pytest.fixture(scope="module", autouse=True)
def package():
    require_module("coverage")


@pytest.fixture(params=CONFIGURATIONS)
def rcfile(request, tmp_path):
    path = tmp_path / "coveragerc"
    path.write_text(
        f"[run]\nbranch = true\ndata_file = {tmp_path}/data\ninclude = {APP}\n"
        f"{CONFIGURATIONS[request.param]}\n"
    )
    return path


def coverage(*args, cwd):
    subprocess.run([sys.executable, "-m", "coverage", *args], cwd=cwd, check=True)


def covered_lines(rcfile):
    """The lines of the app that some process has run."""
    coverage("combine", "-q", f"--rcfile={rcfile}", cwd=rcfile.parent)
    report = rcfile.parent / "report.json"
    coverage("json", "-q", f"--rcfile={rcfile}", "-o", report, cwd=rcfile.parent)
    [measured] = json.loads(report.read_text())["files"].values()
    return set(measured["executed_lines"])


def lines_of_body(name):
    """The numbers of the lines of a body, by its first and last statement."""
    lines = APP.read_text().splitlines()
    first = next(n for n, line in enumerate(lines, 1) if f"def {name}(" in line)
    block = inspect.getblock([line + "\n" for line in lines[first - 1 :]])
    return set(range(first + 1, first + len(block)))


@pytest.mark.parametrize("recycled", [False, True], ids=["stopped", "recycled"])
def test_bodies_in_worker_processes(redis_transport, start_worker, rcfile, recycled):
    """All lines of the bodies that ran are covered, no line of one that did not."""
    options = ["-c", 20, "--processes", 2]
    if recycled:
        options += ["--max-tasks-per-child", 5]
    env = {"COVERAGE_PROCESS_START": str(rcfile)}
    worker = start_worker(redis_transport, "traced", *options, env=env)
    worker.command[1:1] = ["-m", "coverage", "run", f"--rcfile={rcfile}"]
    with worker:
        sent = [worker.client.send("covered_async", n) for n in range(20)]
        sent += [worker.client.send("covered_def", n) for n in range(20)]
        for result in sent:
            result.get(PATIENCE)

    lines = covered_lines(rcfile)

    for name in ("covered_async", "covered_child", "covered_def"):
        assert lines_of_body(name) <= lines, name
    assert not lines_of_body("never_called") & lines
    assert Path(rcfile.parent / "data").exists()
