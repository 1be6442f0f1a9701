"""The pytest plugin, in real runs of pytest."""

from __future__ import annotations

import subprocess
import sys

import pytest

SUITE = """
from celery import Celery

app = Celery(broker="memory://", task_always_eager=True)

@app.task
async def add(a, b):
    return a + b

def test_add():
    assert add.delay(1, 2).get() == 3
"""


@pytest.mark.parametrize(("option", "passes"), [("true", True), ("false", False)])
def test_unmodified_suite_runs_async_tasks_eagerly(tmp_path, option, passes):
    """`delay` under `task_always_eager` gives the body's value, unless that is switched off."""
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text(f"[pytest]\nasyncpool_eager = {option}\n")
    plugin = ("-p", "celery_asyncpool.testing")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:celery_asyncpool", *plugin],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert (done.returncode == 0) is passes, done.stdout
