"""Waiting for results of a backend that tells nothing by itself: in this process's memory."""

import asyncio
import uuid

import pytest
from celery import Celery
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import GroupResult

from celery_asyncpool import as_completed, gather, get

PATIENCE = 60.0


@pytest.fixture
def app():
    app = Celery("waits", broker="memory://", backend="cache+memory://", set_as_current=False)
    yield app
    app.close()


@pytest.fixture
def new(app):
    """Make the result of a task that has not ended."""
    return lambda: app.AsyncResult(uuid.uuid4().hex)


def succeed(result, value):
    result.backend.mark_as_done(result.id, value)


def fail(result, exc):
    result.backend.mark_as_failure(result.id, exc)


def test_get(new):
    """A value that comes later arrives; one that is there is there."""

    async def main():
        late, there = new(), new()
        succeed(there, "there")
        wait = asyncio.create_task(get(late, timeout=PATIENCE))
        assert await get(there, timeout=PATIENCE) == "there"
        assert not wait.done()
        succeed(late, "late")
        return await wait

    assert asyncio.run(main()) == "late"


def test_timeout(new):
    """A wait ends after its time; nobody waits then."""
    with pytest.raises(CeleryTimeoutError):
        asyncio.run(get(new(), timeout=0.05))
    with pytest.raises(CeleryTimeoutError):
        asyncio.run(get(new(), timeout=0))


def test_two_wait_for_one(new):
    """Any number may wait for one task; the cancellation of one is not that of the others."""

    async def main():
        result = new()
        waits = [asyncio.create_task(get(result, timeout=PATIENCE)) for _ in range(3)]
        await asyncio.sleep(0)
        waits[0].cancel()
        succeed(result, 5)
        return await asyncio.gather(*waits, return_exceptions=True)

    cancelled, *values = asyncio.run(main())

    assert isinstance(cancelled, asyncio.CancelledError)
    assert values == [5, 5]


def test_two_loops(new):
    """Loops of two threads wait for one task, each for itself."""

    async def main():
        result = new()
        wait = asyncio.create_task(get(result, timeout=PATIENCE))
        other = asyncio.create_task(
            asyncio.to_thread(asyncio.run, get(new_view(result), timeout=PATIENCE))
        )
        succeed(result, 5)
        return await wait, await other

    def new_view(result):
        return result.app.AsyncResult(result.id)

    assert asyncio.run(main()) == (5, 5)


def test_gather_fails_at_once(new):
    """The first error ends the wait, whoever else has not ended."""

    async def main():
        never, broken = new(), new()
        fail(broken, KeyError("broken"))
        with pytest.raises(KeyError):
            await gather(never, broken, timeout=PATIENCE)
        succeed(never, 1)
        return await gather(never, broken, propagate=False, timeout=PATIENCE)

    value, error = asyncio.run(main())

    assert value == 1
    assert isinstance(error, KeyError)


def test_group(app, new):
    """A group is the list of its members' values; an empty one is empty."""

    async def main():
        members = [new() for _ in range(3)]
        for n, member in enumerate(members):
            succeed(member, n)
        empty = await get(GroupResult("empty", []), timeout=PATIENCE)
        return await get(GroupResult("group", members), timeout=PATIENCE), empty

    assert asyncio.run(main()) == ([0, 1, 2], [])


def test_broken_chain(new):
    """The error of an earlier link is raised for the last one, which never runs."""
    first, last = new(), new()
    last.parent = first
    fail(first, KeyError("first"))

    with pytest.raises(KeyError, match="first"):
        asyncio.run(get(last, timeout=PATIENCE))


def test_as_completed(app, new):
    """Members come as they end, failed ones too, a group when all of its own have ended."""

    async def main():
        slow, fast, broken = new(), new(), new()
        group = GroupResult("group", [slow, fast])
        succeed(fast, "fast")
        fail(broken, KeyError("broken"))
        seen = []
        async for result in as_completed([group, fast, broken], timeout=PATIENCE):
            seen.append(result)
            if {fast, broken} == set(seen):
                succeed(slow, "slow")
        return seen, group

    seen, group = asyncio.run(main())

    assert seen[-1] is group
    assert len(seen) == 3
    assert [member.result for member in group] == ["slow", "fast"]


def test_backend_that_cannot_be_read(app, new, monkeypatch):
    """What the backend raises is raised for who waits."""
    result = new()

    def broken(self, task_id):
        raise OSError("no backend")

    monkeypatch.setattr(type(result.backend), "get_task_meta", broken)

    with pytest.raises(OSError, match="no backend"):
        asyncio.run(get(result, timeout=PATIENCE))
