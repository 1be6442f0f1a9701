"""celery_asyncpool/child/cancel.py: limits and terminations, in bodies of every shape."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import uvloop
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from celery_asyncpool.child import cancel, trace
from celery_asyncpool.child.cancel import BodyControl, BodyStopped
from celery_asyncpool.child.jobcontext import JobContext, enter_job
from celery_asyncpool.child.tasks import prepare
from celery_asyncpool.child.threads import BodyThreads
from celery_asyncpool.core.timelimits import Limits, Verdict

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}

#: Seconds of a limit that is to come, and of everything that is not.
SOON, LATER = 0.05, 20.0

KINDS = {
    "soft": Limits(soft=SOON),
    "hard": Limits(hard=SOON),
    "terminate": Limits(LATER, LATER * 2),
}


@pytest.fixture(params=LOOPS)
def new_loop(request) -> Callable[[], asyncio.AbstractEventLoop]:
    """Both event loops, one after the other."""
    return LOOPS[request.param]


class Probe:
    """What a body tells of itself."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        #: What has been raised at the body's own await.
        self.seen: list[type[BaseException]] = []
        self.cleaned: list[str] = []

    def here(self) -> None:
        """The body is at the await that is to be interrupted."""
        self.arrived.set()

    async def cleanup(self, what: str = "body") -> None:
        """A clean-up that needs the loop."""
        await asyncio.sleep(0)
        self.cleaned.append(what)

    async def wait(self) -> None:
        """Arrive, and wait for ever."""
        self.here()
        await asyncio.Event().wait()


class PatientClock:
    """Stands for `time` in cancel.py: a clock that a busy machine does not run away with.

    It goes on by a step at most from look to look, so that a soft limit comes
    before the hard one, and begins when *may_go* says so.
    """

    STEP = SOON

    def __init__(self, may_go: Callable[[], bool]) -> None:
        self._may_go = may_go
        self._now, self._last = 0.0, time.monotonic()

    def monotonic(self) -> float:
        elapsed = time.monotonic() - self._last
        self._last += elapsed
        if self._may_go():
            self._now += min(elapsed, self.STEP)
        return self._now


class Outcome:
    """What has become of one job."""

    def __init__(self) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self.told: list[Any] = []
        #: Of each limit that was over, whether it was the soft one.
        self.limits: list[bool] = []
        self.probe: Any = None
        self.control: Any = None


def run_job(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    body: Callable[..., Any],
    limits: Limits,
    *,
    grace: float = LATER,
    terminate: bool = False,
    in_thread: bool = False,
    from_arrival: bool = False,
    before_end: Callable[[Outcome], Awaitable[None]] | None = None,
) -> Outcome:
    """Run *body* as ``child/runner.py`` does, to its end.

    *from_arrival*: limits count from where the body says that it is there.
    """
    app = Celery("test", broker="memory://", set_as_current=False)
    app.task(body, name="proj.body", shared=False)
    app.finalize()
    task = app.tasks["proj.body"]
    prepare(task)
    outcome = Outcome()

    async def run_one(job: JobContext, threads: BodyThreads) -> Any:
        enter_job(job)
        outcome.control = job.control = BodyControl(
            limits,
            grace,
            asyncio.get_running_loop(),
            "proj.body[1f3c]",
            on_started=lambda: outcome.told.append("started"),
            on_cancelled=lambda: outcome.told.append("cancelled"),
            on_limit=lambda is_soft: outcome.limits.append(is_soft),
            on_over=lambda: None,
            on_stuck=lambda verdict, stack: outcome.told.append((verdict, stack)),
        )
        job.control.task = asyncio.current_task()
        if in_thread:
            return await threads.run(task.run, outcome.probe)
        return await trace.drive(task.run, outcome.probe)

    async def main() -> None:
        trace.bind_loop(asyncio.get_running_loop())
        threads = BodyThreads(2)
        outcome.probe = Probe()
        own = asyncio.create_task(run_one(JobContext(1), threads))
        if terminate:
            await asyncio.wait_for(outcome.probe.arrived.wait(), LATER)
            outcome.control.terminate()
        if before_end is not None:
            await before_end(outcome)
        await asyncio.wait([own], timeout=LATER)
        assert own.done(), "the job does not end"
        outcome.control.close()
        try:
            outcome.value = own.result()
        except BaseException as exc:
            outcome.error = exc
        await asyncio.sleep(0)
        assert own.cancelling() == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}
        threads.shutdown()
        trace.bind_loop(None)

    def may_go() -> bool:
        return not from_arrival or outcome.probe.arrived.is_set()

    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(loop_factory=new_loop) as runner:
        patch.setattr(cancel, "time", PatientClock(may_go))
        runner.run(main())
    return outcome


# Shapes of bodies: each is interrupted where it has called `probe.here`.


async def plain_await(probe):
    await probe.wait()


async def sleep(probe):
    probe.here()
    await asyncio.sleep(LATER)


async def future(probe):
    probe.here()
    await asyncio.get_running_loop().create_future()


async def inside_task_group(probe):
    async with asyncio.TaskGroup() as group:
        group.create_task(wait_and_clean_up(probe, "child"))
        await asyncio.sleep(LATER)


async def at_exit_of_task_group(probe):
    async with asyncio.TaskGroup() as group:
        group.create_task(wait_and_clean_up(probe, "child"))
        group.create_task(wait_and_clean_up(probe, "child"))


async def timeout_around(probe):
    async with asyncio.timeout(LATER):
        await probe.wait()


async def nested_timeouts(probe):
    async with asyncio.timeout(LATER), asyncio.timeout(LATER + 1):
        await wait_and_clean_up(probe, "body")


async def wait_for(probe):
    await asyncio.wait_for(wait_and_clean_up(probe, "child"), LATER)


async def gather(probe):
    await asyncio.gather(
        wait_and_clean_up(probe, "child"),
        wait_and_clean_up(probe, "child"),
    )


async def shield(probe):
    inner = asyncio.create_task(probe.wait())
    try:
        await asyncio.shield(inner)
    finally:
        inner.cancel()
        await asyncio.wait([inner])
        await probe.cleanup()


async def anyio_task_group(probe):
    async with anyio.create_task_group() as group:
        group.start_soon(anyio_shielded_cleanup, probe, "child")
        await anyio.sleep(LATER)


async def anyio_at_exit_of_task_group(probe):
    async with anyio.create_task_group() as group:
        group.start_soon(anyio_shielded_cleanup, probe, "child")
        group.start_soon(anyio_shielded_cleanup, probe, "child")


async def anyio_cancel_scope(probe):
    with anyio.move_on_after(LATER):
        await wait_and_clean_up(probe, "body")


async def anyio_shielded_cleanup(probe, what="body"):
    try:
        await probe.wait()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.001)
            await probe.cleanup(what)


async def semaphore(probe):
    lock = asyncio.Semaphore(0)
    probe.here()
    async with lock:
        raise AssertionError("never acquired")


async def queue(probe):
    probe.here()
    await asyncio.Queue().get()


async def condition(probe):
    changed = asyncio.Condition()
    async with changed:
        probe.here()
        await changed.wait()


async def wait(probe):
    tasks = [asyncio.create_task(probe.wait()), asyncio.create_task(probe.wait())]
    try:
        await asyncio.wait(tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await probe.cleanup()


async def subprocess(probe):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-Sc", "import time; time.sleep(60)"
    )
    probe.here()
    try:
        await process.wait()
    finally:
        process.kill()
        await process.wait()
        await probe.cleanup()


async def to_thread(probe):
    go_on = threading.Event()
    probe.here()
    try:
        await asyncio.to_thread(go_on.wait, LATER)
    finally:
        go_on.set()


async def async_generator(probe):
    async def numbers():
        try:
            yield 1
            await probe.wait()
            yield 2
        finally:
            await probe.cleanup()

    async for _ in numbers():
        pass


async def async_context_manager(probe):
    @contextlib.asynccontextmanager
    async def resource():
        try:
            yield
        finally:
            await probe.cleanup()

    async with resource():
        await probe.wait()


async def exit_stack(probe):
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(probe.cleanup)
        await probe.wait()


async def nested_tasks(probe):
    async def outer():
        await asyncio.create_task(wait_and_clean_up(probe, "child"))

    await asyncio.create_task(outer())


async def wait_and_clean_up(probe, what):
    try:
        await probe.wait()
    finally:
        await probe.cleanup(what)


#: Before 3.13 a TaskGroup takes a subclass of CancelledError that is raised in it for an error.
TASK_GROUP_WRAPS = sys.version_info < (3, 13)

#: Each shape, and what it cleans up.
SHAPES: dict[Callable[..., Any], list[str]] = {
    plain_await: [],
    sleep: [],
    future: [],
    inside_task_group: ["child"],
    at_exit_of_task_group: ["child", "child"],
    timeout_around: [],
    nested_timeouts: ["body"],
    wait_for: ["child"],
    gather: ["child", "child"],
    shield: ["body"],
    anyio_task_group: ["child"],
    anyio_at_exit_of_task_group: ["child", "child"],
    anyio_cancel_scope: ["body"],
    anyio_shielded_cleanup: ["body"],
    semaphore: [],
    queue: [],
    condition: [],
    wait: ["body"],
    subprocess: ["body"],
    to_thread: [],
    async_generator: ["body"],
    async_context_manager: ["body"],
    exit_stack: ["body"],
    nested_tasks: ["child"],
}


def watched(shape):
    """A body of this *shape* that tells what is raised in it, and lets it go on."""

    async def body(probe):
        try:
            await shape(probe)
        except BaseException as exc:
            probe.seen.append(type(exc))
            raise

    return body


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_shape(new_loop, shape, kind):
    """A body sees its soft limit by that name, its end as a cancellation, and cleans up."""
    outcome = run_job(
        new_loop, watched(shape), KINDS[kind], terminate=kind == "terminate", from_arrival=True
    )

    (seen,) = outcome.probe.seen
    if kind == "soft" and shape is inside_task_group and TASK_GROUP_WRAPS:
        assert seen is ExceptionGroup
    else:
        assert issubclass(seen, asyncio.CancelledError)
        assert issubclass(seen, SoftTimeLimitExceeded) is (kind == "soft")
    assert outcome.probe.cleaned == SHAPES[shape]
    if kind == "soft":
        assert type(outcome.error) is SoftTimeLimitExceeded
        assert outcome.error.args == (SOON,)
        assert f"in {shape.__name__}\n" in "".join(traceback.format_exception(outcome.error))
        assert outcome.told == []
    elif kind == "hard":
        assert type(outcome.error) is TimeLimitExceeded
        assert outcome.error.args == (SOON,)
        (note,) = outcome.error.__notes__
        assert note.startswith("When the limit was over, the task's body was here:\n")
        assert f"in {shape.__name__}\n" in note
        assert outcome.told == ["started", "cancelled"]
    else:
        assert type(outcome.error) is BodyStopped
        assert outcome.error.error is None
        assert outcome.told == ["started", "cancelled"]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_body_goes_on_after_its_soft_limit(new_loop, shape):
    """Who has caught the soft limit can await, use timeouts and groups, and return."""

    async def body(probe):
        try:
            await shape(probe)
        except* SoftTimeLimitExceeded:  # a TaskGroup may have wrapped it
            assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0.001)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.sleep(LATER)
        async with asyncio.TaskGroup() as group:
            child = group.create_task(asyncio.sleep(0.001, "of a child"))
        with anyio.move_on_after(0.001) as scope:
            await anyio.sleep(LATER)
        return child.result(), scope.cancelled_caught

    outcome = run_job(new_loop, body, Limits(soft=SOON, hard=LATER), from_arrival=True)

    assert outcome.error is None
    assert outcome.value == ("of a child", True)
    assert outcome.told == ["started"]


def test_soft_limit_and_then_the_hard_one(new_loop):
    """A body that takes too long after its warning is cancelled at its hard limit."""

    async def body(probe):
        for _ in range(2):
            try:
                await asyncio.sleep(LATER)
            except asyncio.CancelledError as exc:
                probe.seen.append(isinstance(exc, SoftTimeLimitExceeded))
        raise AssertionError("swallowed both")

    outcome = run_job(new_loop, body, Limits(soft=SOON, hard=2 * SOON))

    assert outcome.probe.seen == [True, False]
    assert type(outcome.error) is TimeLimitExceeded


def test_hard_limit_while_the_soft_one_is_on_its_way(new_loop):
    """A child that cleans up keeps the soft limit from its body; then the hard one goes first."""

    async def child(probe):
        probe.here()
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(LATER)
        raise asyncio.CancelledError

    async def body(probe):
        try:
            await asyncio.create_task(child(probe))
        except asyncio.CancelledError as exc:
            probe.seen.append(isinstance(exc, SoftTimeLimitExceeded))
            raise

    limits = Limits(soft=SOON, hard=2 * SOON)
    outcome = run_job(new_loop, body, limits, from_arrival=True)

    assert outcome.probe.seen == [False]
    assert type(outcome.error) is TimeLimitExceeded


def test_soft_limit_that_a_child_has_swallowed(new_loop):
    """The body is told all the same, at once, and a time-out of its own stays one."""

    async def child(probe):
        probe.here()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(LATER)

    async def body(probe):
        try:
            await asyncio.create_task(child(probe))
        except SoftTimeLimitExceeded:
            probe.seen.append("soft limit")
        try:
            async with asyncio.timeout(SOON):
                await asyncio.sleep(LATER)
        except TimeoutError:
            probe.seen.append("time-out")

    outcome = run_job(new_loop, body, Limits(soft=SOON), from_arrival=True)

    assert outcome.probe.seen == ["soft limit", "time-out"]
    assert outcome.error is None


def test_body_that_hears_of_no_limit(new_loop):
    """Cancellations that a child has swallowed do not stay behind in the job's asyncio task."""

    async def child(probe):
        probe.here()
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(LATER)

    async def body(probe):
        await asyncio.create_task(child(probe))

    limits = Limits(soft=SOON, hard=2 * SOON)
    outcome = run_job(new_loop, body, limits, from_arrival=True)

    assert type(outcome.error) is TimeLimitExceeded


def test_body_returns_at_its_hard_limit(new_loop):
    """A body that swallows its cancellation has ended by its hard limit all the same."""

    async def body(probe):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(LATER)
        return "too late"

    outcome = run_job(new_loop, body, Limits(hard=SOON))

    assert type(outcome.error) is TimeLimitExceeded
    assert outcome.value is None


def test_body_raises_at_its_soft_limit(new_loop):
    """What a body makes of its soft limit is its own error."""

    async def body(probe):
        try:
            await asyncio.sleep(LATER)
        except SoftTimeLimitExceeded as exc:
            raise KeyError("gave up") from exc

    outcome = run_job(new_loop, body, Limits(soft=SOON))

    assert type(outcome.error) is KeyError


@pytest.mark.parametrize("depth", [1, 2])
def test_soft_limit_in_a_group(new_loop, depth):
    """A group of nothing but the soft limit is the soft limit."""

    async def body(probe):
        try:
            await asyncio.sleep(LATER)
        except SoftTimeLimitExceeded as exc:
            error = exc
            for _ in range(depth):
                error = BaseExceptionGroup("errors", [error])
            raise error from None

    outcome = run_job(new_loop, body, Limits(soft=SOON))

    assert type(outcome.error) is SoftTimeLimitExceeded
    assert "in body\n" in "".join(traceback.format_tb(outcome.error.__traceback__))


def test_soft_limit_in_a_group_with_others(new_loop):
    """A group with another error in it stays as it is."""

    async def body(probe):
        try:
            await asyncio.sleep(LATER)
        except SoftTimeLimitExceeded as exc:
            raise BaseExceptionGroup("errors", [exc, KeyError("x")]) from None

    outcome = run_job(new_loop, body, Limits(soft=SOON))

    assert isinstance(outcome.error, BaseExceptionGroup)


def test_child_fails_at_the_soft_limit(new_loop):
    """The error of a child that cannot clean up is what the group and the task raise."""

    async def child(probe):
        probe.here()
        try:
            await asyncio.sleep(LATER)
        finally:
            raise KeyError("in clean-up")

    async def body(probe):
        async with asyncio.TaskGroup() as group:
            group.create_task(child(probe))

    outcome = run_job(new_loop, body, Limits(soft=SOON), from_arrival=True)

    assert isinstance(outcome.error, ExceptionGroup)
    assert [type(exc) for exc in outcome.error.exceptions] == [KeyError]


def test_body_without_limits_is_cancelled_by_somebody_else(new_loop):
    """A cancellation that is not the pool's is a failure, not a limit."""

    async def body(probe):
        asyncio.current_task().cancel()
        await asyncio.sleep(LATER)

    outcome = run_job(new_loop, body, Limits(LATER, 2 * LATER))

    assert isinstance(outcome.error, Exception)
    assert not isinstance(outcome.error, SoftTimeLimitExceeded)
    assert "the task's body was cancelled" in str(outcome.error)


class SomeAwaitable:
    """Not a coroutine: it has no `send` and no `throw`."""

    def __init__(self, probe) -> None:
        self.probe = probe

    def __await__(self):
        return self.probe.wait().__await__()


@pytest.mark.parametrize("kind", KINDS)
def test_body_that_returns_an_awaitable(new_loop, kind):
    """Limits hold for whatever can be awaited."""

    def body(probe):
        return SomeAwaitable(probe)

    outcome = run_job(new_loop, body, KINDS[kind], terminate=kind == "terminate")

    errors = {"soft": SoftTimeLimitExceeded, "hard": TimeLimitExceeded, "terminate": BodyStopped}
    assert type(outcome.error) is errors[kind]


def test_body_that_returns_an_awaitable_in_time(new_loop):
    """A limit changes nothing for an awaitable that is done before."""

    def body(probe):
        return asyncio.ensure_future(asyncio.sleep(0.001, "value"))

    outcome = run_job(new_loop, body, Limits(soft=LATER))

    assert outcome.error is None
    assert outcome.value == "value"


@pytest.mark.parametrize("verdict", [Verdict.HARD_LIMIT, Verdict.TERMINATED])
def test_refusing_body(new_loop, verdict):
    """A body that does not end in its grace time is reported once, with its stack."""

    async def body(probe):
        release = asyncio.Event()
        probe.release = release.set
        probe.here()
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    async def before_end(outcome):
        async with asyncio.timeout(LATER):
            while len(outcome.told) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await asyncio.sleep(SOON * 1.5)
        outcome.probe.release()

    terminate = verdict is Verdict.TERMINATED
    limits = Limits(hard=LATER if terminate else SOON)
    outcome = run_job(
        new_loop, body, limits, grace=SOON, terminate=terminate, before_end=before_end
    )

    assert outcome.told[:2] == ["started", "cancelled"]
    ((told, stack),) = outcome.told[2:]
    assert told is verdict
    assert "in body\n" in stack
    assert type(outcome.error) is BodyStopped
    assert outcome.error.error is None
    assert outcome.control.clock.is_detached


def test_body_that_ends_in_time(new_loop):
    """A body with limits that it keeps is as one without, and leaves nothing."""

    async def body(probe):
        await asyncio.sleep(0.001)
        return "value"

    outcome = run_job(new_loop, body, Limits(LATER, 2 * LATER))
    gc.collect()

    assert outcome.value == "value"
    assert outcome.told == ["started"]
    assert outcome.control.clock.next_due() is None


# Plain functions, in threads.


@pytest.mark.parametrize("kind", KINDS)
def test_def_body(new_loop, kind):
    """Limits and terminations are raised in a thread that runs Python code."""

    def body(probe):
        try:
            outcome_loop.append(threading.get_ident())
            # Only from here on: before, it would be raised beside the `try`.
            trace._loop.call_soon_threadsafe(probe.arrived.set)
            while True:
                time.sleep(0.001)
        except BaseException as exc:
            probe.seen.append(type(exc))
            raise
        finally:
            probe.cleaned.append("body")

    outcome_loop: list[int] = []
    outcome = run_job(new_loop, body, KINDS[kind], terminate=kind == "terminate", in_thread=True)

    assert outcome_loop != [threading.get_ident()]
    assert outcome.probe.cleaned == ["body"]
    if kind == "soft":
        assert outcome.probe.seen == [SoftTimeLimitExceeded]
        assert type(outcome.error) is SoftTimeLimitExceeded
        assert "in body\n" in "".join(traceback.format_exception(outcome.error))
    elif kind == "hard":
        assert not issubclass(outcome.probe.seen[0], Exception)
        assert type(outcome.error) is TimeLimitExceeded
        assert "in body\n" in outcome.error.__notes__[0]
        assert outcome.told == ["started", "cancelled"]
    else:
        assert not issubclass(outcome.probe.seen[0], Exception)
        assert type(outcome.error) is BodyStopped
        assert outcome.told == ["started", "cancelled"]


def test_def_body_that_catches_its_soft_limit(new_loop):
    """A plain function may catch its soft limit and return."""

    def body(probe):
        try:
            while True:
                time.sleep(0.001)
        except SoftTimeLimitExceeded:
            return "in time"

    outcome = run_job(new_loop, body, Limits(SOON, LATER), in_thread=True)

    assert outcome.value == "in time"


def test_def_body_that_ends_in_time(new_loop):
    """Nothing is raised in a thread whose body has ended."""

    def body(probe):
        return sum(range(1000))

    for _ in range(20):
        outcome = run_job(new_loop, body, Limits(0.001, 0.002), in_thread=True)
        assert outcome.value == 499500 or isinstance(
            outcome.error, (SoftTimeLimitExceeded, TimeLimitExceeded)
        )


def wait_for_the_end(control, *args):
    """Stand still, so that what is raised in this thread arrives here."""
    deadline = time.monotonic() + LATER
    while time.monotonic() < deadline:
        time.sleep(0.001)
    raise AssertionError("no limit has arrived")


@pytest.mark.parametrize("where", ["start", "outcome"])
def test_def_body_limit_that_arrives_beside_the_body(new_loop, monkeypatch, where):
    """A hard limit counts also where it arrives just before, or just after, the body itself."""
    original = getattr(BodyControl, where)
    calls = []

    def slow(control, *args):
        result = original(control, *args)
        calls.append(where)
        if len(calls) == 1:
            if where == "outcome":
                raise cancel.StopThread
            wait_for_the_end(control)
        return result

    def body(probe):
        while where == "outcome":
            time.sleep(0.001)

    monkeypatch.setattr(BodyControl, where, slow)

    outcome = run_job(new_loop, body, Limits(None, SOON), in_thread=True)

    assert isinstance(outcome.error, TimeLimitExceeded)


@pytest.mark.parametrize("kind", KINDS)
def test_def_body_that_gives_an_awaitable(new_loop, kind):
    """A function in a thread that turns out to be async is ended at its await."""

    def body(probe):
        return wait_and_clean_up(probe, "body")

    outcome = run_job(new_loop, body, KINDS[kind], terminate=kind == "terminate", in_thread=True)

    errors = {"soft": SoftTimeLimitExceeded, "hard": TimeLimitExceeded, "terminate": BodyStopped}
    assert type(outcome.error) is errors[kind]
    assert outcome.probe.cleaned == ["body"]


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_limit_on_the_way_from_the_thread_to_the_loop(new_loop, kind):
    """It ends the body at its await, though the loop has not come to that yet."""
    loops = []

    async def before_end(outcome):
        loops.append(asyncio.get_running_loop())

    def body(probe):
        while not loops:
            time.sleep(0.001)
        loops[0].call_soon_threadsafe(time.sleep, 4 * SOON)
        return wait_and_clean_up(probe, "body")

    outcome = run_job(new_loop, body, KINDS[kind], in_thread=True, before_end=before_end)

    assert type(outcome.error) is {"soft": SoftTimeLimitExceeded, "hard": TimeLimitExceeded}[kind]
