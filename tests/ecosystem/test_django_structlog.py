"""django-structlog, whose receivers bind what each line of a task's log has to tell."""

import json
import sqlite3
import subprocess
import sys

import pytest
from worker import HERE, PATIENCE

from tests.conftest import require_module


@pytest.fixture(scope="module")
def worker(redis_transport, start_worker, tmp_path_factory):
    require_module("django_structlog")
    path = tmp_path_factory.mktemp("sqlite") / "db.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    database = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(path),
        "OPTIONS": {"timeout": 60},
    }
    env = {
        "DJANGO_SETTINGS_MODULE": "apps.django_project.settings",
        "DJANGO_DATABASE": json.dumps(database),
        "DJANGO_STRUCTLOG": "1",
    }
    options = ("django_project", "-c", "50", "--processes", "1")
    worker = start_worker(redis_transport, *options, env=env)
    subprocess.run(
        [sys.executable, "-m", "django", "migrate", "--run-syncdb", "-v0"],
        env=worker.environment,
        cwd=HERE,
        check=True,
        timeout=120,
    )
    with worker:
        yield worker


def test_lines_are_bound_to_their_tasks(worker, flavour):
    """Before, in and after fifty bodies at a time, each line has the id and data of its task."""
    task = f"apps.structlog_tasks.tasks.{flavour}_logging"
    results = [worker.client.app.send_task(task) for _ in range(50)]

    for result in results:
        result.get(timeout=PATIENCE)
    worker.wait_settled(*results)
    for result in results:
        lines = worker.records("logged", id=result.id)
        assert [(line["event"], line["things"]) for line in lines] == [
            ("task_started", 0),
            ("in the body", 0),
            ("in a thread", 0),
            ("task_succeeded", -1),
        ]
