"""The threads that an event loop gives calls to."""

import asyncio
import threading
from contextlib import contextmanager

import pytest

from celery_asyncpool.child.threadpool import ThreadPool


@contextmanager
def thread_pool(limit):
    pool = ThreadPool(limit, "test")
    try:
        yield pool
    finally:
        pool.stop()


def fail():
    raise KeyError("seven")


def end_iteration():
    raise StopIteration("seven")


def test_result_comes_back_from_another_thread():
    """A call runs in a thread of the pool, and its value comes back."""

    async def main():
        return (await pool.submit(threading.current_thread)).get()

    with thread_pool(2) as pool:
        thread = asyncio.run(main())

    assert thread.name == "test_0"
    assert not thread.is_alive()


@pytest.mark.parametrize(("call", "error"), [(fail, KeyError), (end_iteration, StopIteration)])
def test_error_is_raised_where_the_outcome_is_asked_for(call, error):
    """Any exception comes back, even one that no future can hold."""

    async def main():
        outcome = await pool.submit(call)
        with pytest.raises(error, match="seven"):
            outcome.get()

    with thread_pool(1) as pool:
        asyncio.run(main())


def test_at_most_limit_calls_run_at_once():
    """Calls run side by side up to the limit; the next ones wait their turn."""
    limit, running, seen = 3, set(), []
    all_in = threading.Barrier(limit)

    def call(number):
        running.add(number)
        all_in.wait(10)
        seen.append(len(running))
        all_in.wait(10)
        running.discard(number)

    async def main():
        return await asyncio.gather(*(pool.submit(lambda n=n: call(n)) for n in range(limit * 4)))

    with thread_pool(limit) as pool:
        outcomes = asyncio.run(main())

    assert [outcome.get() for outcome in outcomes] == [None] * limit * 4
    assert set(seen) == {limit}


def test_one_thread_serves_calls_that_do_not_overlap():
    """A thread is started only when all others have a call."""

    async def main():
        return {(await pool.submit(threading.get_ident)).get() for _ in range(20)}

    with thread_pool(5) as pool:
        idents = asyncio.run(main())

    assert len(idents) == 1


def test_cancelled_call_is_not_made():
    """A call whose future is cancelled while it waits is skipped, the next one is made."""
    made = []
    go_on = threading.Event()

    async def main():
        first = pool.submit(lambda: go_on.wait(10))
        cancelled = pool.submit(lambda: made.append("cancelled"))
        last = pool.submit(lambda: made.append("last"))
        cancelled.cancel()
        go_on.set()
        await asyncio.gather(first, last)

    with thread_pool(1) as pool:
        asyncio.run(main())

    assert made == ["last"]


def test_cancelled_future_of_a_running_call_is_left_alone():
    """What a call gives back after its future was cancelled is dropped."""
    begun, go_on = threading.Event(), threading.Event()

    def call():
        begun.set()
        go_on.wait(10)

    async def main():
        future = pool.submit(call)
        while not begun.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0)
        future.cancel()
        go_on.set()
        return (await pool.submit(lambda: "still here")).get()

    with thread_pool(1) as pool:
        assert asyncio.run(main()) == "still here"
        assert repr(pool) == "<ThreadPool test 0 calls, 1 threads>"


def test_closed_loop_ends_the_thread():
    """A call that ends after its loop was closed is nobody's error."""
    begun, go_on = threading.Event(), threading.Event()

    def call():
        begun.set()
        go_on.wait(10)

    async def main():
        pool.submit(call)
        while not begun.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0)

    with thread_pool(1) as pool:
        asyncio.run(main())
        go_on.set()
