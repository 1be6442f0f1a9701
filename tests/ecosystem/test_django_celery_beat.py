"""django-celery-beat: the schedule is in Django's database, where tasks may change it."""

import contextlib
import json
import sqlite3
import subprocess
import sys

import pytest
from program import Program
from worker import HERE, PATIENCE, wait_for

from tests.conftest import require_module

SCHEDULER = ("--scheduler", "django")

#: An entry that is there before beat is: what changes before its second look, it misses.
FIRST_ENTRY = """
import asyncio
from apps.periodic_tasks.tasks import plan
asyncio.run(plan("pulse", "async_tick"))
"""


def django(worker, *args):
    """Run one of Django's commands on the worker's database."""
    command = [sys.executable, "-m", "django", *args]
    subprocess.run(command, env=worker.environment, cwd=HERE, check=True, timeout=120)


@pytest.fixture
def start_django(redis_transport, start_worker, tmp_path):
    """Start a worker of the project on a database of the test's own."""
    require_module("django_celery_beat")
    path = tmp_path / "db.sqlite3"
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
        "DJANGO_BEAT": "1",
    }

    def start(*options):
        worker = start_worker(
            redis_transport, "django_project", "-c", 20, "--processes", 1, *options, env=env
        )
        django(worker, "migrate", "--run-syncdb", "-v0")
        django(worker, "shell", "-c", FIRST_ENTRY)
        return worker

    return start


def call(worker, task, *args, **kwargs):
    name = f"apps.periodic_tasks.tasks.{task}"
    return worker.client.app.send_task(name, args, kwargs).get(PATIENCE)


def runs(worker, name):
    return [line["id"] for line in worker.records("ran", name=name)]


def wait_ran(worker, name, times):
    wait_for(lambda: len(runs(worker, name)) >= times, worker.tail)


def check_runs(worker, beat, name):
    """The entry is disabled: each of the tasks that *beat* has sent has run, once."""
    sent = beat.log().count(f"Sending due task {name} ")
    wait_ran(worker, name, sent)
    ids = runs(worker, name)
    assert len(ids) == len(set(ids)) == sent == call(worker, "count", name)


@contextlib.contextmanager
def with_beat(start_django, where):
    """A worker, and beat as a program of its own or in the worker (``-B``); who logs for beat."""
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(
            start_django(*(["-B", *SCHEDULER] if where == "embedded" else []))
        )
        beat = worker
        if where == "beside":
            program = Program(worker, "beat", *SCHEDULER, "-l", "INFO", "--pidfile=")
            beat = stack.enter_context(program)
        wait_ran(worker, "pulse", 2)
        yield worker, beat


@pytest.mark.parametrize("where", ["beside", "embedded"])
def test_schedule_changed_by_tasks(start_django, flavour, where):
    """A task schedules another one, which runs each second, until a task disables it."""
    name = f"{flavour}_tick"
    with with_beat(start_django, where) as (worker, beat):
        call(worker, "plan", name, name)
        wait_ran(worker, name, 3)
        call(worker, "disable", name)
        wait_ran(worker, "pulse", len(runs(worker, "pulse")) + 3)

        check_runs(worker, beat, name)


@pytest.mark.parametrize("where", ["beside", "embedded"])
def test_once(start_django, where):
    """A one-off task runs once, while others go on."""
    with with_beat(start_django, where) as (worker, _):
        call(worker, "plan", "once", "async_tick", one_off=True)
        wait_ran(worker, "once", 1)
        wait_ran(worker, "pulse", len(runs(worker, "pulse")) + 3)

        assert len(runs(worker, "once")) == 1


def test_stop_and_start(start_django):
    """Beat in the worker stops with it and starts with it: what it sends runs, each task once."""
    with with_beat(start_django, "embedded") as (worker, beat):
        call(worker, "plan", "counted", "async_tick")
        wait_ran(worker, "counted", 3)
        worker.stop()
        worker.restart()
        wait_ran(worker, "counted", len(runs(worker, "counted")) + 2)
        call(worker, "disable", "counted")
        wait_ran(worker, "pulse", len(runs(worker, "pulse")) + 3)

        check_runs(worker, beat, "counted")
