"""tests/upstream/plugin.py: a session of pytest whose pool is another one."""

import subprocess
import sys
from pathlib import Path

import pytest

from .outcomes import read_record

REPOSITORY = Path(__file__).parents[2]

#: As Celery's own: its conftest chooses the pool of the session.
CONFTEST = """
import pytest

@pytest.fixture(scope="session")
def celery_worker_pool():
    return "prefork"
"""

TESTS = """
import os
import pytest

def test_pool(celery_worker_pool):
    assert celery_worker_pool == "celery_asyncpool:Pool"

def test_skip():
    pytest.skip("no server")

@pytest.mark.xfail(reason="GH-1")
def test_xfail():
    assert False

@pytest.mark.xfail(reason="GH-1")
def test_xpass():
    pass

@pytest.fixture
def broken():
    yield
    raise OSError("broken\\npipe")

def test_teardown(broken):
    pass

def test_death():
    os._exit(1)

def test_after():
    pass
"""


@pytest.fixture
def run(tmp_path):
    """Run these tests in a pytest of their own; return its exit code, errors and record."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_them.py").write_text(TESTS)
    record = tmp_path / "record"
    record.touch()

    def run(*arguments):
        command = [sys.executable, "-m", "pytest", "-p", "tests.upstream.plugin"]
        command += ["--upstream-pool", "celery_asyncpool:Pool"]
        command += ["--upstream-record", str(record), *arguments]
        env = {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        return done.returncode, done.stderr, read_record(record.read_text().splitlines())

    return run


def test_outcomes(run):
    """The session has the pool that was asked for; each test has its outcome and reason."""
    code, _, tests = run()

    assert code == 1
    assert {name.partition("::")[2]: (t.outcome, t.reason) for name, t in tests.items()} == {
        "test_pool": ("passed", ""),
        "test_skip": ("skipped", "Skipped: no server"),
        "test_xfail": ("xfailed", "GH-1"),
        "test_xpass": ("xpassed", "GH-1"),
        "test_teardown": ("failed", "OSError: broken"),
        "test_death": ("missing", ""),
        "test_after": ("missing", ""),
    }


def test_selection(run, tmp_path):
    """Only what is named runs."""
    selection = tmp_path / "selection"
    selection.write_text("test_them.py::test_pool\n")

    code, _, tests = run("--upstream-selection", str(selection))

    assert code == 0
    assert list(tests) == ["test_them.py::test_pool"]


def test_stale_selection(run, tmp_path):
    """A name that stands for no test is an error: what it stood for would run no more."""
    selection = tmp_path / "selection"
    selection.write_text("test_them.py::test_pool\ntest_them.py::test_gone\n")

    code, errors, _ = run("--upstream-selection", str(selection))

    assert code == 4
    assert "names what Celery's tests lack: test_them.py::test_gone" in errors
