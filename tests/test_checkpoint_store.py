"""celery_asyncpool/checkpoints.py: where checkpoints are kept, and where they cannot be."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.app.trace import build_tracer
from celery.exceptions import ImproperlyConfigured
from kombu.exceptions import EncodeError

from celery_asyncpool import AsyncTask, checkpoints


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path


@pytest.fixture
def app(folder) -> Celery:
    """An app that keeps results in files."""
    return Celery(
        "test",
        broker="memory://",
        backend=f"file://{folder}",
        task_cls=AsyncTask,
        set_as_current=False,
    )


def add(app, body, **options):
    app.task(body, name="proj.task", bind=True, shared=False, **options)
    return app.tasks["proj.task"]


def run(task, task_id="one", **request):
    """Run *task* as pools do that just call it; return its value, or its error."""
    tracer = build_tracer(task.name, task, app=task.app)
    value = tracer(task_id, (), {}, {"id": task_id, **request}).retval
    if not isinstance(value, ExceptionInfo):
        return value
    return getattr(value.exception, "exc", value.exception)


def stored(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".checkpoint")]


def stores(state):
    """A body that stores *state* and returns what was there before."""

    def body(self):
        async def main():
            before = await self.alast_checkpoint()
            await self.acheckpoint(state)
            return before

        return asyncio.run(main())

    return body


def test_other_pools(app, folder):
    """Where Celery calls a plain body that runs a loop of its own, it is the same."""

    def body(self):
        async def main():
            state = await self.alast_checkpoint()
            await self.acheckpoint((state or 0) + 1)
            return await self.alast_checkpoint()

        number = asyncio.run(main())
        if number < 3:
            raise ValueError(number)
        return number

    task = add(app, body)

    assert [str(run(task)) for _ in range(2)] == ["1", "2"]
    assert stored(folder) == ["celery-task-meta-one.checkpoint"]
    assert run(task) == 3
    assert stored(folder) == []


def test_each_id_has_its_own(app, folder):
    """A task with another id finds nothing."""

    def body(self):
        stores("state")(self)
        raise ValueError

    task = add(app, body)

    run(task, "one")

    assert run(add_reader(app), "two") is None
    assert run(add_reader(app), "one") == "state"


def add_reader(app):
    def reads(self):
        return asyncio.run(self.alast_checkpoint())

    if "proj.reads" not in app.tasks:
        app.task(reads, name="proj.reads", bind=True, shared=False)
    return app.tasks["proj.reads"]


def test_a_run_that_only_reads(app, folder):
    """It ends well, so what it has found goes too."""
    payload = app.backend.encode({"page": 3})
    (folder / "celery-task-meta-one.checkpoint").write_text(payload)

    assert run(add_reader(app)) == {"page": 3}
    assert stored(folder) == []


@pytest.mark.parametrize("content", [b"", b'{"pag'])
def test_half_a_checkpoint(app, folder, caplog, content):
    """What a killed writer has left of a file is as good as nothing, and is told."""
    (folder / "celery-task-meta-one.checkpoint").write_bytes(content)

    assert run(add_reader(app)) is None
    assert "the checkpoint of proj.reads[one] cannot be read" in caplog.text
    assert stored(folder) == []


def test_removed_by_somebody_else(app, folder, caplog):
    """What has expired meanwhile is no error."""

    def body(self):
        stores("state")(self)
        (folder / "celery-task-meta-one.checkpoint").unlink()
        return "done"

    assert run(add(app, body)) == "done"
    assert caplog.text == ""


def test_cannot_be_removed(app, folder, caplog, monkeypatch):
    """The task ends well, and the log tells."""

    def fail(task_id):
        raise ConnectionError("gone")

    monkeypatch.setattr(checkpoints.BackendStore, "delete", staticmethod(fail))

    assert run(add(app, stores("state"))) is None
    assert "the checkpoint of proj.task[one] could not be removed; it will expire" in caplog.text
    assert "ConnectionError: gone" in caplog.text


def test_cannot_be_stored(app, monkeypatch):
    """The body sees the backend's own error."""

    def fail(task_id, payload):
        raise ConnectionError("gone")

    monkeypatch.setattr(checkpoints.BackendStore, "set", staticmethod(fail))

    assert isinstance(run(add(app, stores("state"))), ConnectionError)


def test_serializer(app, folder):
    """What JSON cannot encode is an error that names the task; pickle takes it."""
    error = run(add(app, stores(object())))

    assert isinstance(error, EncodeError)
    assert str(error).startswith(
        "the checkpoint of proj.task cannot be encoded by the result_serializer 'json': "
    )
    assert stored(folder) == []


def test_pickle(folder):
    """The app's result serializer is what counts."""
    app = Celery(
        "test",
        broker="memory://",
        backend=f"file://{folder}",
        task_cls=AsyncTask,
        set_as_current=False,
    )
    app.conf.update(result_serializer="pickle", accept_content=["pickle"])

    def body(self):
        stores({(1, 2)})(self)
        return asyncio.run(self.alast_checkpoint())

    assert run(add(app, body)) == {(1, 2)}


@pytest.mark.parametrize(
    ("backend", "says"),
    [(None, "there is none"), ("rpc://", "RPCBackend is none")],
)
def test_backend_that_keeps_no_keys(backend, says):
    """The error says what is needed."""
    app = Celery(
        "test", broker="memory://", backend=backend, task_cls=AsyncTask, set_as_current=False
    )

    error = run(add(app, stores("state"), ignore_result=True))

    assert isinstance(error, ImproperlyConfigured)
    assert str(error).startswith(
        f"checkpoints of proj.task need a result backend that keeps keys and values, and {says}: "
        "set result_backend to Redis"
    )


def test_direct_call(app, folder):
    """A direct call has no id under which it could come again: nothing is stored."""
    task = add(app, stores("state"))

    assert task() is None
    assert task() is None
    assert stored(folder) == []


def test_eager(app, folder):
    """An eager run keeps them in memory for its retries, and no thread is started."""

    def body(self):
        before = stores(self.request.retries)(self)
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return before

    task = add(app, body)
    threads = threading.active_count()

    assert task.apply(task_id="one").get() == 1
    assert threading.active_count() == threads
    assert stored(folder) == []
    assert task.apply(task_id="one").get() == 1


def test_eager_failure(app):
    """An eager run that fails leaves nothing in memory."""

    def body(self):
        stores("state")(self)
        raise ValueError

    add(app, body).apply(task_id="one")

    assert add_reader(app).apply(task_id="one").get() is None


def test_order_and_cancellation():
    """Calls are made one at a time in their order; one that is cancelled before is not made."""
    calls = checkpoints.OrderedCalls()
    gate = threading.Event()
    done = []
    futures = [calls.submit(gate.wait)]
    futures += [calls.submit(lambda number=number: done.append(number)) for number in range(50)]
    assert futures[10].cancel()

    gate.set()

    calls.submit(str).result(60)
    assert done == [number for number in range(50) if number != 9]


def test_error_of_one_call():
    """The next one is made all the same."""
    calls = checkpoints.OrderedCalls()

    with contextlib.suppress(KeyError):
        calls.submit({}.popitem).result(60)

    assert calls.submit(str).result(60) == ""
