"""Blocking calls are named where they block a loop, and nowhere else."""

import asyncio
import logging
import threading

import pytest
from celery import Celery, chain, group
from celery.exceptions import ImproperlyConfigured
from celery.result import ResultSet

from celery_asyncpool import AsyncTask, apply_async
from celery_asyncpool.client import guard

HERE = __file__


@pytest.fixture
def app(monkeypatch):
    """An app without servers."""
    monkeypatch.setattr(guard, "_sites", set())
    app = Celery(
        "guarded",
        broker="memory://",
        backend="cache+memory://",
        task_cls=AsyncTask,
        set_as_current=False,
    )
    yield app
    app.close()


@pytest.fixture
def add(app):
    @app.task(name="proj.add", shared=False)
    def add(x, y):
        return x + y

    return add


@pytest.fixture
def warnings(caplog):
    """The lines that the guard has logged."""
    caplog.set_level(logging.WARNING)
    return lambda: [r.getMessage() for r in caplog.records if "blocks the event loop" in r.message]


async def call(function, *args, **kwargs):
    return function(*args, **kwargs)


def test_delay(add, warnings):
    """The line that calls, the task and the twin are named, once."""

    async def main():
        for _ in range(3):
            add.delay(1, 2)

    asyncio.run(main())

    [line] = warnings()
    assert line.startswith(f"{HERE}:{main.__code__.co_firstlineno + 2}: proj.add: .delay() ")
    assert "`await proj.add.adelay(...)`" in line
    assert line.endswith("(asyncpool_blocking_calls)")


@pytest.mark.parametrize(
    ("publish", "twin"),
    [
        (lambda add: add.apply_async((1, 2)), "await proj.add.aapply_async(...)"),
        (lambda add: add.s(1, 2).delay(), "await apply_async(signature)"),
        (lambda add: group(add.s(1, 2)).apply_async(), "await apply_async(signature)"),
        (lambda add: chain(add.s(1, 2), add.s(3)).apply_async(), "await apply_async(signature)"),
        (
            lambda add: add.app.send_task("proj.add", (1, 2)),
            'await apply_async(app.signature("proj.add", ...))',
        ),
    ],
)
def test_other_ways_to_publish(add, warnings, publish, twin):
    """Each way to publish has its twin."""
    asyncio.run(call(publish, add))

    [line] = warnings()
    assert f"use `{twin}`" in line


@pytest.mark.parametrize(
    "wait",
    [
        lambda result: result.get(timeout=0.01),
        lambda result: result.wait(timeout=0.01),
        lambda result: ResultSet([result]).get(timeout=0.01),
        lambda result: ResultSet([result]).join(timeout=0.01),
    ],
)
def test_waits(add, warnings, wait):
    """Waiting for a result is named, with its twin."""
    result = add.delay(1, 2)

    with pytest.raises(Exception, match=r"timed out|not within"):
        asyncio.run(call(wait, result))

    assert "use `await get(result)`" in warnings()[0]


def test_where_nothing_blocks(add, warnings):
    """Plain scripts, threads, results that are there, and the twins are not named."""
    add.delay(1, 2)
    eager = add.apply((1, 2))
    thread = threading.Thread(target=add.delay, args=(1, 2))
    thread.start()
    thread.join()

    async def main():
        await asyncio.to_thread(add.delay, 1, 2)
        await add.adelay(1, 2)
        await apply_async(group(add.s(1, 2), add.s(3, 4)))
        assert eager.get() == 3
        add.app.backend.mark_as_done("there", 5)
        there = add.app.AsyncResult("there")
        assert there.state == "SUCCESS"
        assert there.get() == 5

    asyncio.run(main())

    assert warnings() == []


def test_error(app, add, warnings):
    """With "error" the call raises the same words, and nothing is sent."""
    app.conf.asyncpool_blocking_calls = "error"

    with pytest.raises(RuntimeError, match=r"await proj\.add\.adelay\(\.\.\.\)"):
        asyncio.run(call(add.delay, 1, 2))

    assert warnings() == []


def test_allow(app, add, warnings):
    """With "allow" nothing is said."""
    app.conf.asyncpool_blocking_calls = "allow"

    asyncio.run(call(add.delay, 1, 2))

    assert warnings() == []


def test_bad_setting(app):
    """A value that cannot be is refused, by name, where the first task is made."""
    app.conf.asyncpool_blocking_calls = "sometimes"

    @app.task(shared=False)
    def first():
        pass

    with pytest.raises(ImproperlyConfigured, match="asyncpool_blocking_calls"):
        app.finalize()


def test_other_apps(warnings):
    """An app that does not use this package's tasks is left alone."""
    app = Celery("other", broker="memory://", set_as_current=False)

    asyncio.run(call(app.send_task, "proj.other"))

    assert warnings() == []
    app.close()


def test_tools_that_come_later(app, add, monkeypatch):
    """What a tool puts in the place of `Celery.send_task` afterwards is called, too."""
    seen = []
    original = Celery.send_task

    def send_task(self, name, *args, **kwargs):
        seen.append(name)
        return original(self, name, *args, **kwargs)

    add.delay(1, 2)
    monkeypatch.setattr(Celery, "send_task", send_task)
    add.delay(1, 2)

    assert seen == ["proj.add"]
