"""The soft limit and a time-out of the body's own, over in the same turn of the loop.

Both cancel the body's asyncio task. Python tells them apart by counting, so the
table runs on both loops, and with every Python that the suite is run with.
"""

from __future__ import annotations

import asyncio
import time

import anyio
import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from test_cancel import LATER, SOON, new_loop, run_job

from celery_asyncpool.core.timelimits import Limits

__all__ = ["new_loop"]

#: When the body's own time is over, next to the limit: all within one turn.
BEFORE, AFTER = SOON * 0.9, SOON * 1.1


def both_in_one_turn() -> None:
    """Stand still until the limit and the body's own time are over."""
    asyncio.get_running_loop().call_soon(time.sleep, SOON * 2)


async def timeout(seconds):
    async with asyncio.timeout(seconds):
        both_in_one_turn()
        await asyncio.sleep(LATER)


async def wait_for(seconds):
    both_in_one_turn()
    await asyncio.wait_for(asyncio.sleep(LATER), seconds)


async def timeout_in_timeout(seconds):
    async with asyncio.timeout(seconds), asyncio.timeout(seconds):
        both_in_one_turn()
        await asyncio.sleep(LATER)


async def timeout_in_task_group(seconds):
    async with asyncio.TaskGroup(), asyncio.timeout(seconds):
        both_in_one_turn()
        await asyncio.sleep(LATER)


async def task_group_in_timeout(seconds):
    async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(LATER))
        both_in_one_turn()


async def clean_up_in_timeout(seconds):
    """The clean-up takes a few turns, and is within the time-out that is over."""
    async with asyncio.timeout(seconds):
        both_in_one_turn()
        try:
            await asyncio.sleep(LATER)
        finally:
            for _ in range(3):
                await asyncio.sleep(0)


async def move_on_after(seconds):
    with anyio.move_on_after(seconds):
        both_in_one_turn()
        await anyio.sleep(LATER)


async def fail_after(seconds):
    with anyio.fail_after(seconds):
        both_in_one_turn()
        await anyio.sleep(LATER)


async def anyio_group_in_scope(seconds):
    with anyio.fail_after(seconds):
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, LATER)
            both_in_one_turn()


SHAPES = [
    timeout,
    wait_for,
    timeout_in_timeout,
    timeout_in_task_group,
    task_group_in_timeout,
    clean_up_in_timeout,
    move_on_after,
    fail_after,
    anyio_group_in_scope,
]


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.__name__)
def shape(request):
    return request.param


@pytest.mark.parametrize("seconds", [BEFORE, SOON, AFTER], ids=["before", "with", "after"])
def test_soft_limit_in_the_turn_of_a_timeout(new_loop, shape, seconds):
    """The soft limit arrives, whichever of the two came first in that turn."""

    async def body(probe):
        await shape(seconds)

    outcome = run_job(new_loop, body, Limits(soft=SOON))

    assert type(outcome.error) is SoftTimeLimitExceeded


@pytest.mark.parametrize("seconds", [BEFORE, SOON, AFTER], ids=["before", "with", "after"])
def test_body_goes_on_after_both(new_loop, shape, seconds):
    """Who has caught the soft limit then has time-outs and groups that work."""

    async def body(probe):
        try:
            await shape(seconds)
        except* SoftTimeLimitExceeded:
            probe.seen.append("soft limit")
        await asyncio.sleep(0)
        assert asyncio.current_task().cancelling() == 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.sleep(LATER)
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                await asyncio.sleep(LATER)
        await asyncio.sleep(0.001)
        with anyio.move_on_after(0.001) as scope:
            await anyio.sleep(LATER)
        return scope.cancelled_caught

    outcome = run_job(new_loop, body, Limits(soft=SOON))

    assert outcome.error is None
    assert outcome.probe.seen == ["soft limit"]
    assert outcome.value is True


async def fail():
    raise KeyError("of a child")


@pytest.mark.parametrize("seconds", [BEFORE, SOON, AFTER], ids=["before", "with", "after"])
def test_hard_limit_in_the_turn_of_a_timeout(new_loop, shape, seconds):
    """The hard limit ends the body, whichever of the two came first in that turn."""

    async def body(probe):
        await shape(seconds)
        await asyncio.sleep(LATER)

    outcome = run_job(new_loop, body, Limits(hard=SOON))

    assert type(outcome.error) is TimeLimitExceeded


def test_timeout_before_the_soft_limit(new_loop):
    """A time-out that is over first is one; the limit is then told as well."""

    async def body(probe):
        try:
            async with asyncio.timeout(SOON / 5):
                await asyncio.sleep(LATER)
        except TimeoutError:
            probe.seen.append("time-out")
        try:
            await asyncio.sleep(LATER)
        except SoftTimeLimitExceeded:
            probe.seen.append("soft limit")

    outcome = run_job(new_loop, body, Limits(soft=SOON))

    assert outcome.error is None
    assert outcome.probe.seen == ["time-out", "soft limit"]


@pytest.mark.parametrize("seconds", [SOON * 1.5, SOON * 2])
def test_timeout_while_the_soft_limit_waits_for_children(new_loop, seconds):
    """A time-out that is over while a task group waits for its children is not the error."""

    async def clean_up(over):
        try:
            await asyncio.sleep(LATER)
        finally:
            await over.wait()

    async def body(probe):
        over = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds * 1.5, over.set)
        async with asyncio.timeout(seconds), asyncio.timeout(seconds):
            async with asyncio.TaskGroup() as group:
                group.create_task(clean_up(over))

    outcome = run_job(new_loop, body, Limits(soft=SOON))

    assert type(outcome.error) is SoftTimeLimitExceeded


def test_timeout_around_a_clean_up_after_the_soft_limit(new_loop):
    """A time-out whose block the soft limit did not leave is one, when it is over."""

    async def body(probe):
        async with asyncio.timeout(SOON * 20):
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(asyncio.sleep(LATER))
            except* SoftTimeLimitExceeded:
                probe.seen.append("soft limit")
            await asyncio.sleep(LATER)

    outcome = run_job(new_loop, body, Limits(soft=SOON))

    assert outcome.probe.seen == ["soft limit"]
    assert type(outcome.error) is TimeoutError


def test_timeout_around_who_deals_with_the_soft_limit(new_loop):
    """A time-out that is over in a clean-up within it ends that, and is a time-out."""

    async def body(probe):
        async with asyncio.timeout(SOON * 20):
            try:
                await asyncio.sleep(LATER)
            except SoftTimeLimitExceeded:
                await asyncio.sleep(LATER)

    outcome = run_job(new_loop, body, Limits(soft=SOON))

    assert type(outcome.error) is TimeoutError


def test_timeout_while_the_body_deals_with_its_soft_limit(new_loop):
    """A time-out that is over in the clean-up after the soft limit is one."""

    async def body(probe):
        try:
            await asyncio.sleep(LATER)
        except SoftTimeLimitExceeded:
            try:
                await asyncio.wait_for(asyncio.sleep(LATER), SOON / 5)
            except TimeoutError:
                return "cleaned up in time"

    outcome = run_job(new_loop, body, Limits(soft=SOON))

    assert outcome.value == "cleaned up in time"
