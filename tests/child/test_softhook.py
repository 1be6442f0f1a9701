"""celery_asyncpool/child/softhook.py: one hook on the loop, and its end."""

from __future__ import annotations

import asyncio
import logging
from contextvars import ContextVar, copy_context

import pytest

from celery_asyncpool.child.softhook import SoftLimitHook, in_hook

variable: ContextVar[str] = ContextVar("variable", default="unset")


def start(hook):
    """Start *hook* with the task "task"; return what runs it."""
    running = SoftLimitHook(hook, "task", "proj.task[id]")
    running.start(asyncio.get_running_loop(), copy_context())
    return running


async def ended(running):
    await asyncio.wait({running._running})


def test_context():
    """It runs in a copy of the body's context, where code can tell that it is a hook."""

    async def main():
        seen = []

        def hook(task):
            seen.append((task, variable.get(), in_hook()))
            variable.set("by the hook")

        variable.set("by the body")
        await ended(start(hook))
        return seen, variable.get(), in_hook()

    assert asyncio.run(main()) == ([("task", "by the body", True)], "by the body", False)


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_raises(error, caplog):
    """Whatever it raises goes to the log and ends nothing."""

    async def hook(task):
        raise error("a hook's own")

    async def main():
        await ended(start(hook))

    asyncio.run(main())

    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "on_soft_limit of proj.task[id] failed; the task goes on"
    assert record.exc_info[0] is error


def test_cancels_itself(caplog):
    """A CancelledError of its own is an error like others."""

    async def hook(task):
        raise asyncio.CancelledError

    async def main():
        await ended(start(hook))

    asyncio.run(main())

    assert len(caplog.records) == 1


def test_stop(caplog):
    """It is cancelled and may await its cleanup; that is no error."""

    async def main():
        steps = []
        is_up = asyncio.Event()

        async def hook(task):
            steps.append("started")
            is_up.set()
            try:
                await asyncio.sleep(600)
            finally:
                await asyncio.sleep(0)
                steps.append("cleaned up")

        running = start(hook)
        await is_up.wait()
        await running.stop(600)
        return steps, running.is_running

    assert asyncio.run(main()) == (["started", "cleaned up"], False)
    assert caplog.records == []


def test_stop_before_its_first_step():
    """The body ends in the turn of the loop in which its limit is over: it is not called."""

    async def main():
        called = []
        running = start(called.append)
        await running.stop(600)
        return called

    assert asyncio.run(main()) == []


def test_stop_without_start():
    """A body that ends in time has nothing to stop."""
    hook = SoftLimitHook(print, "task", "proj.task[id]")

    assert not hook.is_running
    hook.cancel()
    asyncio.run(hook.stop(0))


def test_refuses_to_stop(caplog):
    """One that swallows its cancellation is left behind after the grace time, and named."""

    async def main():
        go = asyncio.Event()

        async def hook(task):
            while not go.is_set():
                try:
                    await go.wait()
                except asyncio.CancelledError:
                    continue

        running = start(hook)
        await asyncio.sleep(0)
        await running.stop(0.01)
        go.set()
        await ended(running)

    asyncio.run(main())

    [record] = caplog.records
    assert "on_soft_limit of proj.task[id] does not end, 0.01 s after" in record.getMessage()
