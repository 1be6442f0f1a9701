"""celery_asyncpool/child/swallowing.py: what has become of a thrown exception."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from asyncio import CancelledError
from typing import ClassVar

import greenlet
import pytest
from celery.exceptions import SoftTimeLimitExceeded

from celery_asyncpool.child.cancel import SoftLimitCancelled
from celery_asyncpool.child.swallowing import (
    drops_cancellations,
    greenlets,
    is_held,
    is_held_by_thread,
    was_seen,
    went_on,
)


class Turns:
    """To be awaited: gives the loop a turn."""

    def __await__(self):
        yield


turn = Turns()


async def caught_by_name():
    try:
        await turn
    except SoftTimeLimitExceeded:
        pass
    await turn


async def caught_as_exception():
    try:
        await turn
    except (KeyError, Exception) as exc:
        del exc
    await turn


async def caught_as_all():
    try:
        await turn
    except:  # noqa: E722
        pass
    await turn


async def caught_by_an_inner_name():
    try:
        try:
            await turn
        except ValueError:
            await turn
        except SoftTimeLimitExceeded:
            pass
    except asyncio.CancelledError:
        pass
    await turn


async def caught_in_a_group():
    try:
        await turn
    except* SoftTimeLimitExceeded:
        pass
    await turn


async def suppressed_by_name():
    with contextlib.suppress(SoftTimeLimitExceeded):
        await turn
    await turn


async def suppressed_by_name_within():
    with contextlib.suppress(CancelledError), contextlib.suppress(SoftTimeLimitExceeded):
        await turn
    await turn


async def caught_by_a_manager():
    with pytest.raises(SoftTimeLimitExceeded):
        await turn
    await turn


@pytest.mark.parametrize(
    "shape",
    [
        caught_by_name,
        caught_as_exception,
        caught_as_all,
        caught_by_an_inner_name,
        caught_in_a_group,
        suppressed_by_name,
        suppressed_by_name_within,
        caught_by_a_manager,
    ],
    ids=lambda shape: shape.__name__,
)
def test_seen(shape):
    """Who has caught the soft limit under its name, or that of all exceptions, has seen it."""
    assert fate_of(shape()) == "seen"


async def caught_as_cancellation():
    try:
        await turn
    except CancelledError:
        pass
    await turn


async def caught_in_a_tuple():
    try:
        await turn
    except ValueError:
        pass
    except (KeyError, asyncio.CancelledError):
        pass
    await turn


async def caught_further_out():
    try:
        try:
            await turn
        except ValueError:
            await turn
        finally:
            len("a clean-up")
    except asyncio.CancelledError:
        pass
    await turn


async def caught_as_a_variable():
    cancelled = asyncio.CancelledError
    try:
        await turn
    except cancelled:
        pass
    await turn


class Library:
    """As many do: a cancellation ends its call, not its caller."""

    errors: ClassVar = (asyncio.CancelledError, OSError)

    async def call(self):
        try:
            await turn
        except (asyncio.CancelledError, OSError):
            return None

    async def call_with_errors_of_its_class(self):
        try:
            await turn
        except Library.errors:
            return None


async def caught_by_a_library():
    await Library().call()
    await turn


async def caught_with_errors_of_a_class():
    await Library().call_with_errors_of_its_class()
    await turn


async def suppressed():
    with contextlib.suppress(asyncio.CancelledError):
        await turn
    await turn


@pytest.mark.parametrize(
    "shape",
    [
        caught_as_cancellation,
        caught_in_a_tuple,
        caught_further_out,
        caught_as_a_variable,
        caught_by_a_library,
        caught_with_errors_of_a_class,
        suppressed,
    ],
    ids=lambda shape: shape.__name__,
)
def test_swallowed(shape):
    """Who has caught a cancellation of any kind, and no soft limit, has swallowed it."""
    assert fate_of(shape()) == "swallowed"


async def in_except():
    try:
        await turn
    except SoftTimeLimitExceeded:
        await turn


async def in_finally():
    try:
        await turn
    finally:
        await turn


async def in_async_generator():
    async def numbers():
        try:
            await turn
            yield 1
        finally:
            await turn

    async for _ in numbers():
        pass


async def in_async_manager():
    @contextlib.asynccontextmanager
    async def manager():
        try:
            yield
        finally:
            await turn

    async with manager():
        await turn


async def in_another_error():
    try:
        await turn
    except SoftTimeLimitExceeded:
        try:
            raise KeyError("in the clean-up")
        except KeyError:
            await turn


async def kept_for_later():
    try:
        await turn
    except SoftTimeLimitExceeded as exc:
        kept = exc
    await turn
    raise kept


async def in_greenlet():
    """As SQLAlchemy's: what awaits is a function in a greenlet."""

    def work():
        try:
            greenlet.getcurrent().parent.switch(turn)
        finally:
            greenlet.getcurrent().parent.switch(turn)

    inner = greenlet.greenlet(work)
    awaitable = inner.switch()
    while not inner.dead:
        try:
            await awaitable
        except BaseException as exc:
            awaitable = inner.throw(type(exc), exc)
        else:
            awaitable = inner.switch()


@pytest.mark.parametrize(
    "shape",
    [
        in_except,
        in_finally,
        in_async_generator,
        in_async_manager,
        in_another_error,
        kept_for_later,
        in_greenlet,
    ],
    ids=lambda shape: shape.__name__,
)
def test_held(shape):
    """Who deals with it has it."""
    assert fate_of(shape()) == "held"


def fate_of(coroutine):
    """Throw a soft limit in where *coroutine* waits; say what has become of it."""
    coroutine.send(None)
    exc = SoftLimitCancelled(1)
    was_in = greenlets(coroutine)
    in_dropping_block = drops_cancellations(coroutine, SoftTimeLimitExceeded)
    coroutine.throw(exc)
    if is_held(coroutine, exc, was_in):
        fate = "held"
    elif was_seen(exc, SoftTimeLimitExceeded, in_dropping_block):
        fate = "seen"
    else:
        fate = "swallowed"
    with contextlib.suppress(BaseException):
        coroutine.throw(GeneratorExit)
    return fate


def test_tasks_that_go_on():
    """A task that was cancelled goes on where it neither ends nor cleans up."""

    async def wait_in(block):
        try:
            await asyncio.sleep(0)
            await asyncio.Event().wait()
        finally:
            if block == "finally":
                await asyncio.Event().wait()

    async def swallow():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    async def main():
        not_cancelled = asyncio.create_task(wait_in("try"))
        cleans_up = asyncio.create_task(wait_in("finally"))
        goes_on = asyncio.create_task(swallow())
        ends = asyncio.create_task(wait_in("try"))
        tasks = [not_cancelled, cleans_up, goes_on, ends]
        for _ in range(3):
            await asyncio.sleep(0)
        for task in tasks[1:]:
            task.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        found = [went_on(task) for task in tasks]
        for _ in range(2):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.01)
        return found

    assert asyncio.run(main()) == [False, False, True, False]


def test_thread_that_cleans_up():
    """A thread has what its `except` and `finally` blocks deal with, and nothing else."""
    in_block, go_on = threading.Event(), threading.Event()

    def work():
        try:
            raise KeyError
        except KeyError:
            try:
                raise ValueError
            except ValueError:
                in_block.set()
                go_on.wait()

    thread = threading.Thread(target=work)
    thread.start()
    in_block.wait()
    held = [is_held_by_thread(thread.ident, cls) for cls in (KeyError, ValueError, OSError)]
    go_on.set()
    thread.join()

    assert held == [True, True, False]
    assert not is_held_by_thread(thread.ident, KeyError)
