"""Async code dispatches tasks and awaits their results: in scripts, and in tasks."""

import asyncio
import threading

import pytest
from celery import chain, chord, group
from celery.exceptions import TimeoutError as CeleryTimeoutError
from worker import PATIENCE, Client, wait_for

from celery_asyncpool import AsyncTask, apply_async, as_completed, gather, get


class Tasks:
    """The app of the tests, as its client's process sees it."""

    def __init__(self, transport, worker):
        self.worker = worker
        self.client = Client(transport, "apps.client")
        self.app = self.client.app
        self.app.Task = AsyncTask

    def s(self, name, *args):
        return self.client.s(name, *args)


@pytest.fixture(scope="module")
def tasks(transport, start_worker):
    """Tasks that a worker runs on each transport; on RabbitMQ with RPC results."""
    if transport.name == "rabbitmq":
        transport.backend = "rpc://"
    with start_worker(transport, "client", "-c", "200", "--processes", "2") as worker:
        yield Tasks(transport, worker)


async def send(tasks, name, *args):
    return await apply_async(tasks.s(name, *args))


def test_result(tasks):
    """A result is awaited; a second `asyncio.run` of the process does the same."""

    async def main():
        return await get(await send(tasks, "add", 1, 2), timeout=PATIENCE)

    assert asyncio.run(main()) == 3
    assert asyncio.run(main()) == 3


def test_result_of_an_earlier_loop(tasks):
    """What one `asyncio.run` has sent another one can await."""
    result = asyncio.run(send(tasks, "add", 1, 2))

    assert asyncio.run(get(result, timeout=PATIENCE)) == 3


def test_result_that_is_there(tasks):
    """A result that was stored long before somebody waits is not missed."""

    async def main():
        result = await send(tasks, "add", 1, 2)
        await get(await send(tasks, "wait", 0.5, None), timeout=PATIENCE)
        return await get(result, timeout=PATIENCE), await get(result, timeout=0)

    assert asyncio.run(main()) == (3, 3)


def test_failure(tasks):
    """The task's exception is raised, or returned on demand."""

    async def main():
        result = await send(tasks, "fail", "no")
        with pytest.raises(ValueError, match="no"):
            await get(result, timeout=PATIENCE)
        return await get(result, propagate=False, timeout=PATIENCE)

    assert isinstance(asyncio.run(main()), ValueError)


def test_timeout(tasks):
    """A wait that takes too long raises Celery's TimeoutError, and the task goes on."""

    async def main():
        result = await send(tasks, "wait", 1, "value")
        for timeout in (0, 0.1):
            with pytest.raises(CeleryTimeoutError):
                await get(result, timeout=timeout)
        return await get(result, timeout=PATIENCE)

    assert asyncio.run(main()) == "value"


def test_gather_and_as_completed(tasks):
    """Many are awaited at once, in order or as they finish."""

    async def main():
        slow = await send(tasks, "wait", 2, "slow")
        fast = await send(tasks, "wait", 0, "fast")
        order = [r.result async for r in as_completed([slow, fast], timeout=PATIENCE)]
        return order, await gather(slow, fast, timeout=PATIENCE)

    assert asyncio.run(main()) == (["fast", "slow"], ["slow", "fast"])


def test_group(tasks):
    """A group gives the list of its values, and its first exception."""

    async def main():
        header = group(tasks.s("add", n, 1) for n in range(20))
        assert await get(await apply_async(header), timeout=PATIENCE) == list(range(1, 21))
        failing = await apply_async(group(tasks.s("wait", 60, 0), tasks.s("fail", "no")))
        with pytest.raises(ValueError, match="no"):
            await get(failing, timeout=PATIENCE)
        failing.revoke(terminate=True)

    asyncio.run(main())


def test_chain(tasks):
    """A chain gives its last value, or the error of the link that broke it."""

    async def main():
        good = await apply_async(chain(tasks.s("add", 1, 2), tasks.s("add", 3)))
        assert await get(good, timeout=PATIENCE) == 6
        bad = await apply_async(chain(tasks.s("fail", "no"), tasks.s("add", 3)))
        with pytest.raises(ValueError, match="no"):
            await get(bad, timeout=PATIENCE)

    asyncio.run(main())


def test_chord(tasks, transport):
    """A chord gives the value of its body, where the backend knows chords."""
    if transport.backend == "rpc://":
        pytest.skip("RPC results know no chords")

    async def main():
        header = [tasks.s("add", n, 1) for n in range(5)]
        return await get(await apply_async(chord(header, tasks.s("total"))), timeout=PATIENCE)

    assert asyncio.run(main()) == 15


@pytest.mark.parametrize(
    ("name", "args", "value"),
    [("dispatches", [5], [1, 2, 3, 4, 5]), ("finishes", [4], [1, 2, 3, 4]), ("retries", [], 2)],
)
def test_inside_of_a_task(tasks, name, args, value):
    """A body dispatches and awaits like any other async code."""

    async def main():
        return await get(await send(tasks, name, *args), timeout=PATIENCE)

    assert asyncio.run(main()) == value


def test_state(tasks, transport):
    """`aupdate_state` stores the state that it is given."""
    if transport.backend == "rpc://":
        pytest.skip("RPC results are ends only")

    async def main():
        result = await send(tasks, "tells", 2)
        await asyncio.to_thread(wait_for, lambda: result.state == "HALF", lambda: result.state)
        assert result.info == {"done": 50}
        return await get(result, timeout=PATIENCE)

    assert asyncio.run(main()) == "told"


def test_retry_leaves_with_the_body(tasks):
    """The next attempt does not start before this one has ended."""

    async def main():
        return await send(tasks, "retries_early")

    result = asyncio.run(main())
    wait_for(lambda: tasks.worker.count("attempt", result) == 2, tasks.worker.tail)
    records = [line["what"] for line in tasks.worker.records(id=result.id)]
    assert records == ["attempt", "end", "attempt"]


def test_rpc_results_that_never_come(tasks, transport):
    """A wait for an RPC result that goes to somebody else is an error at once."""
    if transport.backend != "rpc://":
        pytest.skip("only RPC results go to one process, and once")

    async def main():
        ours = await send(tasks, "add", 1, 2)
        with pytest.raises(RuntimeError, match=r"use `await get\(result\)`"):
            await asyncio.to_thread(ours.get)
        assert await get(ours, timeout=PATIENCE) == 3
        assert await asyncio.to_thread(ours.get) == 3
        theirs = await asyncio.to_thread(tasks.s("add", 1, 2).apply_async)
        with pytest.raises(RuntimeError, match="does not come here"):
            await get(theirs)
        with pytest.raises(RuntimeError, match="does not come here"):
            await get(tasks.app.AsyncResult(ours.id))

    asyncio.run(main())


def test_cancelled_wait_leaves_nothing(tasks):
    """Who is cancelled is not waited for any more, and the loop is free for others."""
    from celery_asyncpool.client.listeners import listener_of

    async def main():
        result = await send(tasks, "wait", 60, None)
        waiting = asyncio.create_task(get(result))
        await asyncio.sleep(0.2)
        listener = listener_of(tasks.app)
        assert listener.is_waited_for(result.id)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not listener.is_waited_for(result.id)
        result.revoke(terminate=True)

    asyncio.run(main())


def test_many_waits(tasks):
    """Three hundred waits need one thread and one subscription."""

    async def main():
        results = [await send(tasks, "add", n, 0) for n in range(300)]
        before = threading.active_count()
        values = await asyncio.gather(*[get(r, timeout=PATIENCE) for r in results])
        assert threading.active_count() <= before + 1
        return values

    assert asyncio.run(main()) == list(range(300))
