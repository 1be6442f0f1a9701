"""Tasks with ``pydantic=True``: arguments are validated, results are dumped, async or not."""

import asyncio
import importlib
import sys

import pytest

from celery_asyncpool import eager
from celery_asyncpool.testing import start_worker as start_test_worker
from tests.conftest import require_module

TIMEOUT = 60

OUT = {"total": 4, "empty": None}

#: Task, arguments, and what it gives.
CASES = [
    ("body", [{"x": 3}], OUT),
    ("optional", [{"x": 4}], OUT),
    ("optional", [None], None),
    ("optional", [], None),
    ("many", [[{"x": 4}, {"x": 4}]], [OUT, OUT]),
    ("many", [[{"x": 4}], {"a": {"x": 4}}], [OUT, OUT]),
    ("many", [[]], []),
    ("by_name", [4], {"one": OUT, "none": None}),
    ("either", [{"x": 4}], OUT),
    ("either", [7], 7),
    ("plain", [7], 7),
    ("unannotated", [{"x": 1}], {"x": 1}),
    ("def_body", [{"x": 3}], OUT),
    ("hidden", [{"x": 3}], OUT),
    ("runs", [{"x": 3}], OUT),
]
ALL = [
    *(
        (f"{kind}{name}", args, value)
        for kind in ("", "own_", "auto_")
        for name, args, value in CASES
    ),
    ("decorated", [{"x": 3}], OUT),
    ("shared", [{"x": 3}], OUT),
    ("bound", [{"x": 3}], OUT),
    ("configured", [{"x": 3, "tag": "a"}, [{"x": 1, "tag": "b"}]], {"sum": 3}),
]


@pytest.fixture(scope="module")
def worker(redis_transport, start_worker):
    require_module("pydantic")
    with start_worker(redis_transport, "models", "-c", "20", "--processes", "1") as worker:
        yield worker


@pytest.mark.parametrize(("task", "args", "value"), ALL)
def test_worker(worker, task, args, value):
    """On a real worker."""
    assert worker.client.send(task, *args).get(TIMEOUT) == value


@pytest.mark.parametrize("task", ["body", "own_body", "auto_body", "hidden", "def_body", "many"])
def test_wrong_arguments(worker, task):
    """What is no model fails the task, with pydantic's own error."""
    wrong = [{"x": "no"}] if task == "many" else {"x": "no"}
    result = worker.client.send(task, wrong)

    result.get(TIMEOUT, propagate=False)
    assert result.state == "FAILURE"
    assert "should be a valid integer" in result.traceback


def test_strict(worker):
    """`pydantic_strict` holds for models in lists, too."""
    right, wrong = {"x": 1, "tag": "b"}, {"x": "1", "tag": "b"}
    for args in ([wrong, [right]], [right, [wrong]]):
        result = worker.client.send("configured", *args)
        result.get(TIMEOUT, propagate=False)
        assert "should be a valid integer" in result.traceback


@pytest.fixture(scope="module")
def app():
    """The same app in this process."""
    require_module("pydantic")
    patch = pytest.MonkeyPatch()
    patch.setenv("ASYNCPOOL_TEST_BROKER", "memory://")
    patch.setenv("ASYNCPOOL_TEST_BACKEND", "cache+memory://")
    with patch.context():
        app = importlib.import_module("apps.models").app
    yield app
    patch.undo()
    app.close()
    del sys.modules["apps.models"]


@pytest.mark.parametrize(("task", "args", "value"), ALL)
def test_eager(app, task, args, value):
    """Eagerly, in plain code and in async code."""
    task = app.tasks[f"apps.models.{task}"]

    assert task.apply(args).get() == value
    assert asyncio.run(eager.call(task.apply, args)).get() == value


def test_testworker(app):
    """In the worker for tests."""
    with start_test_worker(app):
        for task, args, value in ALL:
            task = app.tasks[f"apps.models.{task}"]
            assert task.apply_async(args).get(timeout=TIMEOUT) == value


@pytest.mark.parametrize(
    ("task", "args", "value"), [case for case in ALL if case[0].startswith("own_")]
)
def test_direct_call(app, task, args, value):
    """`await task(...)` of an AsyncTask gives what a plain function's call would give."""
    task = app.tasks[f"apps.models.{task}"]
    value_or_coroutine = task(*args)

    if asyncio.iscoroutine(value_or_coroutine):
        assert asyncio.run(_await(value_or_coroutine)) == value
    else:
        assert value_or_coroutine == value


async def _await(awaitable):
    return await awaitable
