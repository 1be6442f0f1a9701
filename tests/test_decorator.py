"""celery_asyncpool/decorator.py: what async_task makes; its types are in tests/typing."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery

from celery_asyncpool import AsyncTask, async_task

HERE = Path(__file__).parent
README = HERE.parent / "README.md"


class OwnTask(AsyncTask):
    """A project's own."""


@pytest.fixture
def app():
    app = Celery("decorated", set_as_current=False)
    yield app
    app.close()


def test_task(app):
    """The function becomes a task of the app, with the class and the options."""

    @async_task(app, shared=False, name="some.name", acks_late=True, max_retries=7)
    async def add(x: int, y: int) -> int:
        return x + y

    assert isinstance(add, AsyncTask)
    assert app.tasks["some.name"] == add
    assert (add.name, add.acks_late, add.max_retries) == ("some.name", True, 7)


@pytest.mark.parametrize("bind", [True, False])
def test_bind(app, bind):
    """With bind=True, and only then, the function gets the task."""

    @async_task(app, shared=False, bind=bind)
    async def first(*args):
        return args

    args = asyncio.run(first(1))

    assert args == ((first, 1) if bind else (1,))


def test_plain_body(app):
    """A def body is called like any function."""

    @async_task(app, shared=False)
    def add_plainly(x: int, y: int) -> int:
        return x + y

    assert isinstance(add_plainly, AsyncTask)
    assert add_plainly(1, 2) == 3


def test_call_gives_a_coroutine(app):
    """A task with an async body is called like the body, as its type says."""

    @async_task(app, shared=False)
    async def add_slowly(x: int, y: int) -> int:
        return x + y

    coroutine = add_slowly(1, 2)

    assert inspect.iscoroutine(coroutine)
    assert asyncio.run(coroutine) == 3


def test_base(app):
    """The class may be a subclass."""

    @async_task(app, shared=False, base=OwnTask)
    async def own():
        """Nothing."""

    assert isinstance(own, OwnTask)


def test_class_of_the_app():
    """The app's own class is used where it is an AsyncTask."""
    app = Celery("decorated", task_cls=OwnTask, set_as_current=False)

    @async_task(app, shared=False)
    async def own_of_app():
        """Nothing."""

    assert isinstance(own_of_app, OwnTask)


def test_shared_task(app):
    """Without an app it is a task of each app, as with Celery's shared_task."""

    @async_task(name="shared.one", bind=True)
    async def shared(self, x):
        return self.name, x

    app.finalize(auto=True)

    assert isinstance(app.tasks["shared.one"], AsyncTask)
    assert asyncio.run(app.tasks["shared.one"](1)) == ("shared.one", 1)


@pytest.mark.parametrize("name", ["tasks", "readme"])
def test_typed_code_can_be_run(name):
    """What mypy reads are modules that Python runs without a complaint."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(HERE / "typing" / f"{name}.py")],
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_readme():
    """README's example is what mypy has read."""
    [code] = re.findall(r"```python\n(# prices.py\n.*?)```", README.read_text(), re.DOTALL)

    def lines(text):
        return [line for line in text.splitlines() if line]

    read = (HERE / "typing" / "readme.py").read_text()
    assert "\n".join(lines(code)) in "\n".join(lines(read))
