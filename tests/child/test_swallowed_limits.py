"""A limit arrives, whatever swallows it on its way; and disturbs nobody who deals with it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextvars import Context
from types import CoroutineType

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from test_cancel import LATER, SOON, new_loop, run_job

from celery_asyncpool.child.cancel import BodyStopped
from celery_asyncpool.child.reminders import TIMES
from celery_asyncpool.core.timelimits import Limits

__all__ = ["new_loop"]

#: Long enough for a busy machine to look ten times.
GRACE = 2.0
INTERVAL = GRACE / TIMES

KINDS = {
    "soft": (Limits(soft=SOON), SoftTimeLimitExceeded),
    "hard": (Limits(hard=SOON), TimeLimitExceeded),
    "terminate": (Limits(), BodyStopped),
}


@pytest.fixture(params=KINDS)
def kind(request):
    """A soft limit, a hard one, a revoke."""
    return request.param


def end_by(new_loop, kind, body, **options):
    """Run *body* until *kind* ends it; return the outcome."""
    limits, error = KINDS[kind]
    outcome = run_job(
        new_loop, body, limits, grace=GRACE, terminate=kind == "terminate", **options
    )
    assert type(outcome.error) is error
    assert not any(isinstance(told, tuple) for told in outcome.told), "it was given up"
    return outcome


# What swallows.


async def library_call(seconds):
    """As many do: a cancellation ends the call, and its caller does not hear of it."""
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        return None


async def suppressing(probe):
    """Once, and at the second time it is told."""
    probe.here()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(LATER)
    await asyncio.sleep(LATER)


async def suppressing_a_few_times(probe):
    probe.here()
    for _ in range(3):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(LATER)
    await asyncio.sleep(LATER)


async def calling_a_library(probe):
    probe.here()
    for _ in range(3):
        await library_call(LATER)
    await asyncio.sleep(LATER)


async def with_a_child_that_swallows(probe):
    child = asyncio.create_task(suppressing_a_few_times(probe))
    await child


async def with_children_in_a_group(probe):
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(suppressing_a_few_times(probe))


async def with_gathered_children(probe):
    await asyncio.gather(suppressing(probe), suppressing(probe))


SWALLOWING = [
    suppressing,
    suppressing_a_few_times,
    calling_a_library,
    with_a_child_that_swallows,
    with_children_in_a_group,
    with_gathered_children,
]


@pytest.mark.parametrize("shape", SWALLOWING, ids=lambda shape: shape.__name__)
def test_limit_that_was_swallowed(new_loop, kind, shape):
    """It is told again to a body, and to its tasks, that went on."""
    end_by(new_loop, kind, shape)


def test_limit_in_the_turn_in_which_an_inner_future_is_done(new_loop, kind):
    """Python 3.11's wait_for then drops the cancellation; the next await is told at once."""

    async def body(probe):
        probe.here()
        loop = asyncio.get_running_loop()
        control = probe.control
        while True:
            inner = loop.create_future()
            if control.due is not None or control.task.cancelling():
                probe.seen.append("went on")
            # The future is done in the turn in which the limit is over, before the body runs.
            loop.call_later(SOON / 2, wait_until_over, inner)
            await asyncio.wait_for(inner, LATER)

    def wait_until_over(inner):
        time.sleep(SOON / 2)
        asyncio.get_running_loop().call_soon(inner.set_result, None)

    for _ in range(5):
        end_by(new_loop, kind, with_control(body))


def with_control(body):
    """Give *body* what controls it, for a look at what is on its way."""
    from celery_asyncpool.child.jobcontext import current_job

    async def with_it(probe):
        probe.control = current_job().control
        return await body(probe)

    return with_it


def test_busy_bodies_that_wait_with_a_timeout(new_loop, kind):
    """Bodies that do nothing else than wait_for end at their limit, with a library's habits."""

    async def body(probe):
        probe.here()
        loop = asyncio.get_running_loop()
        while True:
            inner = loop.create_future()
            loop.call_soon(inner.set_result, None)
            await asyncio.wait_for(inner, LATER)

    end_by(new_loop, kind, body)


def test_soft_limit_in_a_block_that_drops_cancellations_for_ever(new_loop):
    """It comes under its own name in the end, which such a block lets pass."""

    async def body(probe):
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(INTERVAL / 10)

    end_by(new_loop, "soft", body)


def test_soft_limit_that_a_failing_child_has_replaced(new_loop):
    """A task group reports its child's error; the body then hears of its limit."""

    async def fail(failed):
        await failed.wait()
        raise KeyError("of a child")

    async def body(probe):
        failed = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.call_later(SOON / 2, lambda: (time.sleep(SOON), failed.set()))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail(failed))
                await asyncio.sleep(LATER)
        except* (KeyError, SoftTimeLimitExceeded):
            probe.seen.append("error")
        if asyncio.current_task().cancelling() or probe.seen:
            await asyncio.sleep(LATER)

    limits = Limits(soft=SOON, hard=LATER)
    outcome = run_job(new_loop, body, limits, grace=GRACE)

    assert outcome.probe.seen == ["error"]
    assert type(outcome.error) is SoftTimeLimitExceeded


# Who is not disturbed.


async def long_clean_up(probe):
    """Takes some looks."""
    for _ in range(5):
        await asyncio.sleep(INTERVAL / 2)
    probe.cleaned.append("whole")


async def in_finally(probe):
    try:
        await probe.wait()
    finally:
        await long_clean_up(probe)


async def in_except(probe):
    try:
        await probe.wait()
    except asyncio.CancelledError:
        await long_clean_up(probe)
        raise


async def in_an_async_manager(probe):
    @contextlib.asynccontextmanager
    async def manager():
        try:
            yield
        finally:
            await long_clean_up(probe)

    async with manager():
        await probe.wait()


async def in_an_async_generator(probe):
    async def numbers():
        try:
            await probe.wait()
            yield 1
        finally:
            await long_clean_up(probe)

    async for _ in numbers():
        pass


async def in_a_child(probe):
    await asyncio.create_task(in_finally(probe))


async def in_a_child_of_a_group(probe):
    async with asyncio.TaskGroup() as group:
        group.create_task(in_finally(probe))


async def in_a_shielded_task(probe):
    inner = asyncio.create_task(in_finally(probe))
    try:
        await asyncio.shield(inner)
    finally:
        inner.cancel()
        await asyncio.wait([inner])


CLEANING = [
    in_finally,
    in_except,
    in_an_async_manager,
    in_an_async_generator,
    in_a_child,
    in_a_child_of_a_group,
    in_a_shielded_task,
]


@pytest.mark.parametrize("shape", CLEANING, ids=lambda shape: shape.__name__)
def test_clean_up_is_not_disturbed(new_loop, kind, shape):
    """Who cleans up in an `except` or `finally` block is told once."""
    outcome = end_by(new_loop, kind, shape)

    assert outcome.probe.cleaned == ["whole"]


async def by_name(probe):
    try:
        await asyncio.sleep(LATER)
    except SoftTimeLimitExceeded:
        pass


async def in_a_group(probe):
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(LATER))
    except* SoftTimeLimitExceeded:
        pass


async def as_any_error(probe):
    try:
        await asyncio.sleep(LATER)
    except Exception:
        pass


@pytest.mark.parametrize("shape", [by_name, in_a_group, as_any_error], ids=lambda s: s.__name__)
def test_soft_limit_that_was_seen_is_not_repeated(new_loop, shape):
    """Who has caught the soft limit may go on for as long as the hard limit lets it."""

    async def body(probe):
        await shape(probe)
        await long_clean_up(probe)
        return "went on"

    limits = Limits(soft=SOON, hard=LATER)
    outcome = run_job(new_loop, body, limits, grace=GRACE)

    assert outcome.value == "went on"
    assert outcome.probe.cleaned == ["whole"]


def test_short_clean_up_behind_the_except(new_loop, kind):
    """A body that has caught the cancellation itself has an interval for its last awaits."""

    async def body(probe):
        probe.here()
        try:
            await asyncio.sleep(LATER)
        except asyncio.CancelledError:
            pass
        await asyncio.sleep(INTERVAL / 5)
        probe.cleaned.append("whole")

    limits, _ = KINDS[kind]
    outcome = run_job(new_loop, body, limits, grace=GRACE, terminate=kind == "terminate")

    assert outcome.probe.cleaned == ["whole"]


# Plain functions.


def test_def_body_that_swallows_its_hard_limit():
    """It is raised again in a thread that went on."""
    caught = []

    def body(probe):
        for _ in range(2):
            try:
                while True:
                    time.sleep(0.001)
            except BaseException as exc:
                caught.append(type(exc))
        while True:
            time.sleep(0.001)

    outcome = run_job(asyncio.new_event_loop, body, KINDS["hard"][0], grace=GRACE, in_thread=True)

    assert len(caught) == 2
    assert type(outcome.error) is TimeLimitExceeded
    assert outcome.told == ["started", "cancelled"]


def test_def_body_that_cleans_up():
    """A thread that cleans up in a `finally` block is not disturbed."""

    def body(probe):
        try:
            while True:
                time.sleep(0.001)
        finally:
            end = time.monotonic() + 3 * INTERVAL
            while time.monotonic() < end:
                time.sleep(0.001)
            probe.cleaned.append("whole")

    outcome = run_job(asyncio.new_event_loop, body, KINDS["hard"][0], grace=GRACE, in_thread=True)

    assert outcome.probe.cleaned == ["whole"]


# What stays.


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_kept_of_a_job_that_has_ended(kind):
    """Who still has what controls a job, such as a task that its body left, keeps no more."""
    outcome = end_by(asyncio.new_event_loop, kind, suppressing)

    kept = (asyncio.Task, BaseException, CoroutineType, Context)
    values = vars(outcome.control).values()
    assert [value for value in values if isinstance(value, kept)] == []
