"""Tasks of a Django project: the async ORM, its connections, django-celery-results."""

import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter

import pytest
from worker import HERE, wait_for

MEETING = 4


class Database:
    """Django's settings for one database."""

    def __init__(self, settings):
        self.settings = settings

    def environment(self, transport, **settings):
        return {
            "DJANGO_SETTINGS_MODULE": "apps.django_project.settings",
            "DJANGO_DATABASE": json.dumps({**self.settings, **settings}),
            "DJANGO_MEETING": str(MEETING),
        }

    def migrate(self, transport):
        subprocess.run(
            [sys.executable, "-m", "django", "migrate", "--run-syncdb", "-v0"],
            env={**os.environ, **transport.environment(), **self.environment(transport)},
            cwd=HERE,
            check=True,
            timeout=120,
        )


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request, redis_transport, tmp_path_factory):
    """A database of each kind, with its tables."""
    if request.param == "sqlite":
        path = tmp_path_factory.mktemp("sqlite") / "db.sqlite3"
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
        engine, options = "sqlite3", {"NAME": str(path), "OPTIONS": {"timeout": 60}}
    else:
        server = request.getfixturevalue("postgresql_server")
        engine, options = "postgresql", server.django_settings
    database = Database({"ENGINE": f"django.db.backends.{engine}", **options})
    database.migrate(redis_transport)
    return database


@pytest.fixture(scope="module")
def start(start_worker, redis_transport, database):
    """Start a worker with one process, which has four threads for the ORM."""

    def start(*args, env=None, **settings):
        environment = {**database.environment(redis_transport, **settings), **(env or {})}
        options = ("-c", 50, "--processes", 1, *args)
        return start_worker(redis_transport, "django_project", *options, env=environment)

    return start


def send(worker, task, *args, times=1):
    return [worker.client.send(f"tasks.{task}", *args) for _ in range(times)]


def wait_closed(worker, minimum=1):
    """Wait until each connection that was opened has been closed."""

    def closed():
        opened = Counter(line["thread"] for line in worker.records("opened"))
        return opened.total() >= minimum and opened == Counter(
            line["thread"] for line in worker.records("closed")
        )

    wait_for(closed, lambda: f"closed connections: {worker.records()}")


def test_orm_calls_of_tasks_overlap_and_their_connections_are_closed(start):
    """Each task has its own thread-sensitive thread; after it, its connection is closed."""
    with start() as worker:
        results = [send(worker, "meet_others", f"n{n}")[0] for n in range(MEETING)]

        assert [result.get() for result in results] == [f"n{n}" for n in range(MEETING)]
        wait_closed(worker, MEETING)


def test_calls_of_one_task_share_a_thread(start):
    """As Django promises: one thread and connection for a task and its child tasks."""
    with start() as worker:
        for result in send(worker, "threads", 3, times=5):
            assert len(set(result.get())) == 1


def test_connections_are_bounded_and_shared_by_many_tasks(start):
    """Fifty tasks at once with open cursors get no more connections than threads."""
    with start() as worker:
        names = [f"i{n}" for n in range(3)]
        send(worker, "create", names)[0].get()
        for result in send(worker, "iterate", names, times=50):
            assert result.get() == names
        wait_closed(worker)

        opened = {line["thread"] for line in worker.records("opened")}
        assert len(opened) <= 32


def test_persistent_connections_stay_open(start):
    """With CONN_MAX_AGE, the next task uses the connection of the last one."""
    with start(CONN_MAX_AGE=600) as worker:
        for _ in range(5):
            [result] = send(worker, "count")
            result.get()

        assert len(worker.records("opened")) == 1
        assert worker.records("closed") == []


def test_failed_task_leaves_no_connection(start):
    """A task that raises is no exception."""
    with start() as worker:
        [result] = send(worker, "fail")
        assert isinstance(result.get(propagate=False), Exception)
        wait_closed(worker)


def test_connections_of_plain_tasks_are_closed_as_by_prefork(start):
    """Celery's own rule: after each `def` task, its thread's connection is closed."""
    with start() as worker:
        for _ in range(3):
            [result] = send(worker, "plain")
            assert result.get().startswith("asyncpool-def")
        wait_closed(worker, 3)


def test_results_in_the_database(start):
    """django-celery-results stores what async tasks return, or raise."""
    with start(env={"DJANGO_RESULTS": "django-db"}) as worker:
        good, bad = send(worker, "count")[0], send(worker, "fail")[0]
        wait_for(lambda: worker.log().count("succeeded in") == 1, worker.tail)
        wait_for(lambda: "raised unexpected" in worker.log(), worker.tail)
        wait_closed(worker)

        send(worker, "states", [good.id, bad.id])
        wait_for(lambda: worker.records("states"), worker.tail)
        assert worker.records("states")[0]["states"] == ["SUCCESS", "FAILURE"]
