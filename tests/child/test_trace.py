"""celery_asyncpool/child/trace.py: what a tracer waits for runs in its greenlet, on the loop."""

from __future__ import annotations

import asyncio
import gc
import sys
from contextvars import ContextVar

import greenlet
import pytest
import uvloop

from celery_asyncpool.child.jobcontext import JobContext, enter_job
from celery_asyncpool.child.loop import new_loop
from celery_asyncpool.child.trace import drive, in_tracer, settle

VALUE: ContextVar[int] = ContextVar("value", default=0)


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request):
    """Run a coroutine on a loop as a worker process has it."""
    with asyncio.Runner(loop_factory=lambda: new_loop(request.param)) as runner:
        yield runner.run


async def driven(function, *args):
    return await drive(function, *args)


def call(body):
    """A tracer: what it gets is what a function would have returned."""
    return settle(body())


def test_one_greenlet_and_context(run):
    """Tracer and body see the same greenlet, asyncio task and context; a child the context."""
    seen = []

    def see():
        seen.append((greenlet.getcurrent(), asyncio.current_task(), VALUE.get()))

    async def child():
        return VALUE.get(), greenlet.getcurrent()

    async def body():
        see()
        await asyncio.sleep(0)
        see()
        VALUE.set(VALUE.get() + 1)
        return await asyncio.create_task(child())

    def tracer():
        VALUE.set(1)
        see()
        value = call(body)
        see()
        return value

    value, of_child = run(driven(tracer))

    assert len({(current, task) for current, task, _ in seen}) == 1
    assert [value for _, _, value in seen] == [1, 1, 1, 2]
    assert value == 2
    assert of_child is not seen[0][0]


def test_async_code_is_no_tracer(run):
    """Only the tracer itself may wait: its body has to await."""
    seen = []

    async def body():
        seen.append(in_tracer())
        await asyncio.sleep(0)
        seen.append(in_tracer())
        coroutine = asyncio.sleep(0)
        assert settle(coroutine) is coroutine
        await coroutine

    def tracer():
        call(body)
        return in_tracer() is not None

    assert run(driven(tracer)) is True
    assert seen == [None, None]


def test_errors(run):
    """An error of the body is the tracer's to catch, and nothing refers to it afterwards."""

    class Mark(Exception):
        pass

    async def body():
        await asyncio.sleep(0)
        raise Mark

    def tracer():
        with pytest.raises(Mark):
            call(body)
        return call(lambda: asyncio.sleep(0, "after"))

    gc.collect()
    gc.disable()
    try:
        assert run(driven(tracer)) == "after"
        assert not [found for found in gc.get_objects() if type(found) is Mark]
    finally:
        gc.enable()


def test_caught_cancellation(run):
    """A body that has caught its cancellation handles no exception any more."""
    seen = []

    async def body():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            asyncio.current_task().uncancel()
        seen.append(sys.exc_info())
        await asyncio.sleep(0)
        raise KeyError

    async def main():
        task = asyncio.create_task(driven(call, body))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(KeyError) as caught:
            await task
        return caught.value.__context__

    assert run(main()) is None
    assert seen == [(None, None, None)]


def test_close(run):
    """A job that is thrown away has its `finally` blocks run."""
    seen = []

    async def body():
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("body")

    def tracer():
        try:
            call(body)
        finally:
            seen.append("tracer")

    async def main():
        job = driven(tracer)
        job.send(None)
        job.close()

    run(main())
    assert seen == ["body", "tracer"]


@pytest.mark.parametrize("in_job", [False, True], ids=["process", "job"])
def test_task_factories_are_called_on_the_loop(run, in_job):
    """Eager tasks begin in the greenlet in which they go on, in the context of their caller."""
    seen = []

    def factory(loop, coro, **options):
        seen.append((greenlet.getcurrent(), VALUE.get()))
        return asyncio.Task(coro, loop=loop, **options)

    async def child():
        return VALUE.get()

    async def body():
        if in_job:
            asyncio.get_running_loop().set_task_factory(factory)
        VALUE.set(7)
        return await asyncio.create_task(child())

    async def main():
        if in_job:
            enter_job(JobContext(1))
        else:
            asyncio.get_running_loop().set_task_factory(factory)
        value = await drive(call, body)
        return value, greenlet.getcurrent()

    value, of_loop = run(main())

    assert value == 7
    assert seen[-1] == (of_loop, 7)


def test_steps_from_another_greenlet():
    """A job that a loop within another job's body steps waits where it is stepped."""
    order = []

    async def inner():
        order.append("inner")
        await asyncio.sleep(0)
        order.append("inner again")
        return "inner"

    def step_to_the_end(job):
        try:
            while True:
                job.send(None)
        except StopIteration as stop:
            return stop.value

    job = driven(call, inner)
    job.send(None)

    async def outer():
        order.append("outer")
        value = step_to_the_end(job)
        await asyncio.sleep(0)
        return value

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(driven(call, outer)) == "inner"
    assert order == ["inner", "outer", "inner again"]
