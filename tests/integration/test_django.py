"""Tasks of a Django project: the async ORM, its connections, django-celery-results."""

import dataclasses
import json
import os
import sqlite3
import subprocess
import sys
import uuid
from collections import Counter
from glob import glob
from pathlib import Path

import django
import psycopg
import pytest
from worker import HERE, wait_for

MEETING = 4


class Database:
    """Django's settings for one database."""

    def __init__(self, engine, settings):
        self.engine = engine
        self.settings = {"ENGINE": f"django.db.backends.{engine}", **settings}

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

    def count_connections(self, worker):
        """How many connections the worker's processes have, as the system sees it."""
        if self.engine == "postgresql":
            settings = self.settings
            with psycopg.connect(
                host=settings["HOST"],
                port=settings["PORT"],
                user=settings["USER"],
                dbname=settings["NAME"],
            ) as connection:
                [row] = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE backend_type = 'client backend' AND pid != pg_backend_pid()"
                )
            return row[0]
        links = [Path(link) for pid in worker.pool_pids() for link in glob(f"/proc/{pid}/fd/*")]
        name = self.settings["NAME"]
        return sum(str(link.readlink()).startswith(name) for link in links if link.exists())


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
    database = Database(engine, options)
    database.migrate(redis_transport)
    return database


@pytest.fixture(scope="module")
def start(start_worker, redis_transport, database):
    """Start a worker with one process, whose tasks have 32 threads for the ORM."""

    def start(env=None, **settings):
        transport = dataclasses.replace(redis_transport, queue=f"test-{uuid.uuid4().hex[:8]}")
        environment = {**database.environment(transport, **settings), **(env or {})}
        options = ("-c", 50, "--processes", 1)
        return start_worker(transport, "django_project", *options, env=environment)

    return start


@pytest.fixture(scope="module")
def worker(start):
    """The worker of all tests that need no settings of their own."""
    with start() as worker:
        yield worker


def send(worker, task, *args, times=1):
    return [worker.client.send(f"tasks.{task}", *args) for _ in range(times)]


def ask(worker, task, *args):
    [result] = send(worker, task, *args)
    return result.get(timeout=60)


def connections(worker, what):
    """How many connections were opened, or closed, in each thread."""
    return Counter(line["thread"] for line in worker.records(what))


def wait_closed(worker):
    """Wait until each connection that was opened has been closed."""
    wait_for(
        lambda: connections(worker, "opened") == connections(worker, "closed"),
        lambda: f"opened and closed: {[connections(worker, w) for w in ('opened', 'closed')]}",
    )


def test_orm_calls_of_tasks_overlap(worker):
    """Each task has its own thread-sensitive thread; after it, its connection is closed."""
    results = [send(worker, "meet_others", f"n{n}")[0] for n in range(MEETING)]

    assert [result.get(timeout=60) for result in results] == [f"n{n}" for n in range(MEETING)]
    assert len(connections(worker, "opened")) >= MEETING
    wait_closed(worker)


def test_calls_of_one_task_share_a_thread(worker):
    """As Django promises: one thread and connection for a task and its child tasks."""
    for result in send(worker, "threads", 3, times=5):
        assert len(set(result.get(timeout=60))) == 1


def test_async_orm(worker):
    """`acreate`, `aget`, `async for` and the others, in many tasks at a time."""
    results = [send(worker, "crud", f"crud{n}")[0] for n in range(20)]

    for n, result in enumerate(results):
        name = f"crud{n}!"
        assert result.get(timeout=60) == [name, True, False, [name], [1] * 3, False]


def test_transactions(worker):
    """In `sync_to_async`, a transaction is one: all or nothing, whatever other tasks do."""
    names = {n: [f"t{n}a", f"t{n}b"] for n in range(20)}
    results = [send(worker, "create_in_transaction", names[n], n % 2)[0] for n in names]

    for n, result in enumerate(results):
        if n % 2:
            with pytest.raises(ValueError, match="no"):
                result.get(timeout=60)
        else:
            assert result.get(timeout=60) == 2
    created = ask(worker, "iterate", [name for both in names.values() for name in both])
    assert sorted(created) == sorted(name for n in names if n % 2 == 0 for name in names[n])


def test_connections_that_a_task_ends_itself(worker):
    """As with Channels' `database_sync_to_async`: the next call has another one."""
    assert ask(worker, "call_like_channels", "channels") == [False, True, 1]
    wait_closed(worker)


def test_500_tasks_leave_no_connection(worker, database):
    """Fifty at once, with open cursors, have no more connections than threads; then none."""
    names = [f"i{n}" for n in range(3)]
    ask(worker, "create", names)
    for result in send(worker, "iterate", names, times=500):
        assert result.get(timeout=60) == names
    wait_closed(worker)

    threads = {name for name in connections(worker, "opened") if "orm" in name}
    assert len(threads) <= 32
    wait_for(lambda: database.count_connections(worker) == 0, "no connection left")


def test_failed_task_leaves_no_connection(worker):
    """A task that raises is no exception."""
    with pytest.raises(ValueError, match="no"):
        ask(worker, "fail")
    wait_closed(worker)


def test_connections_of_plain_tasks_are_closed_as_by_prefork(worker):
    """Celery's own rule: after each `def` task, its thread's connection is closed."""
    before = connections(worker, "opened").total()
    for _ in range(3):
        assert ask(worker, "plain").startswith("asyncpool-def")
    wait_closed(worker)

    assert connections(worker, "opened").total() == before + 3


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("body", ["async", "def"])
def test_handlers_and_receivers_use_the_orm(worker, body, fail):
    """Plain ones write, in transactions too, and the task's own outcome is stored."""
    [result] = send(worker, f"{body}_noted", fail)
    if fail:
        with pytest.raises(ValueError, match="no"):
            result.get(timeout=60)
    else:
        result.get(timeout=60)
    worker.wait_settled(result)

    after = ["on_failure no", "task_failure"] if fail else ["on_success", "task_success"]
    expected = ["task_prerun", "before_start", *after, "after_return", "task_postrun"]
    assert ask(worker, "notes", result.id) == expected
    wait_closed(worker)


def test_failure_is_the_bodys(worker):
    """The error of a body is stored, whatever its `on_failure` does with the ORM."""
    results = send(worker, "failing", times=60)
    for result in results:
        with pytest.raises(ValueError, match="no"):
            result.get(timeout=60)
    worker.wait_settled(*results)
    assert ask(worker, "notes", results[-1].id) == ["ValueError('no')"]
    wait_closed(worker)


@pytest.mark.parametrize("body", ["async", "def"])
@pytest.mark.parametrize("how", ["receiver", "handler", "async receiver"])
def test_tenant(start, database, body, how):
    """What is chosen on the connection before the body holds in it, and is its task's alone.

    Also with more tasks at a time than threads.
    """
    if (body, how) == ("def", "async receiver"):
        pytest.skip("a def body has a thread, and its connection, of its own")
    name = {"async receiver": "receiver_atenant"}.get(how, f"{how}_tenant")
    with start(CONN_MAX_AGE=600) as worker:
        tenants = [f"tenant {n}" for n in range(45)]
        results = [send(worker, f"{body}_{name}", tenant, 0.2)[0] for tenant in tenants]
        others = send(worker, "no_tenant", 0.1, times=20)

        for tenant, result in zip(tenants, results, strict=True):
            found = [tenant] * (1 + (database.engine == "postgresql"))
            if (body, how) == ("def", "receiver") and len(found) > 1:
                # Celery's fixup, connected later, closes the connection: as on prefork.
                found[1] = None
            assert result.get(timeout=60) == [[*found, "de"]] * 2
        for other in others:
            assert [lookup[:-1] for lookup in other.get(timeout=60)] == [
                [None] * (1 + (database.engine == "postgresql"))
            ] * 2
        worker.wait_settled(*results, *others)
        assert ask(worker, "no_tenant", 0)[0][-1] != "de"
        for tenant, result in zip(tenants, results, strict=True):
            for line in worker.records("on_success", id=result.id):
                assert line["tenants"][0] == tenant


def test_persistent_connections_and_results_in_the_database(start):
    """With CONN_MAX_AGE, connections serve the next tasks; django-celery-results has its own."""
    with start(CONN_MAX_AGE=600, env={"DJANGO_RESULTS": "django-db"}) as worker:
        results = [send(worker, task)[0] for task in ("count", "fail", "count", "count")]
        worker.wait_log("succeeded in", 3)
        worker.wait_log("raised unexpected")

        send(worker, "states", [result.id for result in results])
        wait_for(lambda: worker.records("states"), worker.tail)
        [line] = worker.records("states")
        assert line["states"] == ["SUCCESS", "FAILURE", "SUCCESS", "SUCCESS"]
        orm = [name for name in connections(worker, "opened").elements() if "orm" in name]
        assert len(orm) == len(set(orm)) <= 4
        assert not [name for name in connections(worker, "closed") if "orm" in name]


@pytest.mark.skipif(django.VERSION < (5, 1), reason="Django has pools from 5.1 on")
def test_pooled_connections_go_back(start, database):
    """With PostgreSQL's pool, fifty tasks share four connections, and give them back."""
    if database.engine != "postgresql":
        pytest.skip("only PostgreSQL has pools")
    pool = {"min_size": 1, "max_size": 4, "timeout": 120}
    with start(OPTIONS={"pool": pool}) as worker:
        names = [f"p{n}" for n in range(3)]
        ask(worker, "create", names)
        for result in send(worker, "iterate", names, times=100):
            assert result.get(timeout=60) == names

        def all_are_back():
            most, size, available = ask(worker, "pool_use")
            assert most == 4
            return size == available

        wait_for(all_are_back, worker.tail)
