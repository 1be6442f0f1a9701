"""Lifespans without a worker: in a test's own loop."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator

import pytest
from celery import Celery, current_app

from celery_asyncpool import Lifespan, LifespanError, lifespan
from celery_asyncpool.lifespans import lifespans_of


@pytest.fixture
def app() -> Celery:
    return Celery(f"lifespans-{uuid.uuid4().hex}", set_as_current=False)


class Resource:
    def __init__(self) -> None:
        self.is_open = True


async def open_resource() -> AsyncIterator[Resource]:
    resource = Resource()
    try:
        yield resource
    finally:
        resource.is_open = False


def test_running(app: Celery) -> None:
    """Within ``running()`` it has its object, which is closed afterwards."""
    resource = lifespan(app)(open_resource)

    async def use() -> Resource:
        async with resource.running() as one:
            async with resource.running() as inner:
                assert inner is one
            assert one is resource.get()
            assert one.is_open
        return one

    assert not asyncio.run(use()).is_open
    assert not asyncio.run(use()).is_open  # in another loop, too


def test_get_where_it_does_not_run(app: Celery) -> None:
    """The error names it, and says where it lives and what a test can do."""
    resource = lifespan(app)(open_resource)

    with pytest.raises(LifespanError, match=r"open_resource does not run here.*running\(\)"):
        resource.get()
    with pytest.raises(LifespanError, match="does not run here"):
        asyncio.run(resource.start())


def test_lazy_must_be_started() -> None:
    resource = Lifespan(open_resource, lazy=True)

    async def use() -> None:
        async with resource.running():
            assert resource.get() is await resource.start()

    asyncio.run(use())


def test_concurrent_starts_are_one() -> None:
    """Ten ask for a restart at once; there is one, and the old object is closed."""
    opened: list[Resource] = []

    async def slow() -> AsyncIterator[Resource]:
        await asyncio.sleep(0)
        opened.append(Resource())
        resource = opened[-1]
        yield resource
        resource.is_open = False

    async def use() -> None:
        async with Lifespan(slow).running() as old:
            pass
        made = Lifespan(slow)
        opened.clear()
        async with made.running() as old:
            new = await asyncio.gather(*(made.restart(old) for _ in range(10)))
            assert len(set(new)) == 1
            assert opened == [old, made.get()]
            assert await made.restart(old) is made.get()
        assert [one.is_open for one in opened] == [False, False]

    asyncio.run(use())


def test_failed_restart_keeps_the_old_one() -> None:
    """The error reaches who asked, with its cause; the next one tries again."""
    faults: list[Exception] = []

    async def fragile() -> AsyncIterator[Resource]:
        if faults:
            raise faults.pop()
        yield Resource()

    async def use() -> None:
        made = Lifespan(fragile)
        async with made.running() as old:
            faults.append(OSError("no memory"))
            with pytest.raises(LifespanError, match="fragile did not start: OSError") as caught:
                await made.restart()
            assert isinstance(caught.value.__cause__, OSError)
            assert made.get() is old
            assert await made.restart() is not old

    asyncio.run(use())


def test_cancelled_waiter_does_not_end_the_start() -> None:
    """Who waits is cancelled; the start goes on for the others."""
    gate: list[asyncio.Event] = []

    async def gated() -> AsyncIterator[Resource]:
        if gate:
            await gate[0].wait()
        yield Resource()

    async def use() -> None:
        made = Lifespan(gated)
        async with made.running() as old:
            gate.append(asyncio.Event())
            first, second = (asyncio.create_task(made.restart(old)) for _ in range(2))
            await asyncio.sleep(0)
            first.cancel()
            gate[0].set()
            assert await second is made.get()
            assert first.cancelled()

    asyncio.run(use())


def test_end_by_itself_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A background task of the lifespan fails: the log has it, and get() says so."""

    async def fail(event: asyncio.Event) -> None:
        await event.wait()
        raise OSError("the connection broke")

    async def supervised() -> AsyncIterator[asyncio.Event]:
        event = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(fail(event))
            yield event

    async def use() -> None:
        made = Lifespan(supervised)
        async with made.running() as event:
            event.set()
            await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=10)
            with pytest.raises(LifespanError, match="has ended by itself"):
                made.get()

    with caplog.at_level(logging.ERROR):
        asyncio.run(use())
    assert "the connection broke" in caplog.text


def test_another_loop_is_refused() -> None:
    """A ``def`` task with a loop of its own cannot restart what lives in the process's."""

    async def use() -> None:
        made = Lifespan(open_resource)
        async with made.running():
            with pytest.raises(LifespanError, match="lives in another event loop"):
                await asyncio.to_thread(asyncio.run, made.restart())

    asyncio.run(use())


async def takes_an_argument(name: str) -> AsyncIterator[str]:
    yield name


async def does_not_yield() -> None:
    """A coroutine function."""


def is_plain() -> None:
    """No coroutine at all."""


@pytest.mark.parametrize("function", [takes_an_argument, does_not_yield, is_plain])
def test_wrong_functions_are_refused(app: Celery, function: object) -> None:
    with pytest.raises(TypeError, match="must be an `async def` function without arguments"):
        lifespan(app)(function)  # type: ignore[arg-type]
    assert lifespans_of(app) == []


def test_lifespans_of_an_app(app: Celery) -> None:
    """In the order of definition; a copy of the app, as spawned processes get, has them too."""
    one = lifespan(app)(open_resource)
    two = lifespan(app, lazy=True)(open_resource)

    assert lifespans_of(app) == [one, two]
    copy = Celery(app.main, set_as_current=False)
    assert lifespans_of(copy, is_copy=True) == [one, two]
    assert lifespans_of(copy) == []
    assert lifespans_of(Celery("another", set_as_current=False), is_copy=True) == []


def test_proxy_of_an_app(app: Celery) -> None:
    app.set_current()
    one = lifespan(current_app)(open_resource)

    assert lifespans_of(app) == [one]
