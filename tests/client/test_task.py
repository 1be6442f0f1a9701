"""``AsyncTask`` without servers."""

import asyncio
import sys

import pytest
from celery import Celery
from celery.exceptions import Retry
from kombu.exceptions import OperationalError

from celery_asyncpool import AsyncTask, apply_async, get


@pytest.fixture
def app():
    app = Celery("tasks", broker="memory://", task_cls=AsyncTask, set_as_current=False)
    yield app
    app.close()


def test_eager(app):
    """With `task_always_eager` the twins run the task, too."""
    app.conf.task_always_eager = True

    @app.task(shared=False)
    def add(x, y):
        return x + y

    async def main():
        return await get(await add.adelay(1, 2)), await get(await apply_async(add.s(3, 4)))

    assert asyncio.run(main()) == (3, 7)


def test_retry_of_a_direct_call(app):
    """A body that is called directly has nothing to retry: it ends, as with `retry`."""

    @app.task(shared=False, bind=True)
    async def again(self, exc=None):
        raise await self.aretry(exc=exc)

    with pytest.raises(Retry):
        asyncio.run(again())
    with pytest.raises(KeyError):
        asyncio.run(again(KeyError("mine")))


def test_errors_of_a_call(app):
    """A wrong call raises where it is made."""

    @app.task(shared=False)
    def add(x, y):
        return x + y

    with pytest.raises(TypeError):
        asyncio.run(add.adelay(1))


def test_on_commit_without_django(app, monkeypatch):
    """What needs Django's transactions says so, and what to use in its place."""
    monkeypatch.setitem(sys.modules, "django.db", None)

    @app.task(shared=False)
    def add(x, y):
        return x + y

    with pytest.raises(RuntimeError, match="no Django"):
        add.delay_on_commit(1, 2)
    with pytest.raises(RuntimeError, match="no Django"):
        add.apply_async_on_commit((1, 2))
    with pytest.raises(RuntimeError, match="no Django"):
        asyncio.run(add.adelay_on_commit(1, 2))
    with pytest.raises(RuntimeError, match="no Django"):
        asyncio.run(add.aapply_async_on_commit((1, 2)))


def test_no_broker(app):
    """Without a broker the error names it, and is Celery's."""
    app.conf.broker_url = "amqp://127.0.0.1:1//"
    app.conf.broker_connection_timeout = 1

    @app.task(shared=False)
    def add(x, y):
        return x + y

    with pytest.raises(OperationalError, match="no connection to the broker amqp://"):
        asyncio.run(add.adelay(1, 2))
