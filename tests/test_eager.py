"""Eager and direct calls of async tasks: no worker, no broker."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import warnings
from unittest import mock

import pytest
from celery import Celery, Task, chain, chord, current_task, group, signals
from celery.exceptions import Ignore, Retry

from celery_asyncpool import LifespanError, eager, lifespan


@pytest.fixture(autouse=True)
def installed():
    """Eager calls run async bodies, and leave nothing open."""
    threads = set(threading.enumerate())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        eager.install()
        yield
        eager.uninstall()
        gc.collect()
    # A socket, a loop, a coroutine that nobody has awaited.
    kinds = (ResourceWarning, RuntimeWarning)
    assert [str(w.message) for w in caught if issubclass(w.category, kinds)] == []
    left = {thread.name for thread in set(threading.enumerate()) - threads if thread.is_alive()}
    assert not {name for name in left if not name.startswith("asyncio_")}


@pytest.fixture(params=["apply", "always_eager"])
def app(request):
    """An app with a plain configuration, and one whose `delay` is eager."""
    app = Celery("eager", set_as_current=False, broker="memory://", backend="cache+memory://")
    app.conf.task_always_eager = request.param == "always_eager"
    yield app
    app.close()


def run(task, *args):
    """Call *task* eagerly, as its app is configured."""
    if task.app.conf.task_always_eager:
        return task.delay(*args)
    return task.apply(args=args)


class Loops:
    """The event loops that bodies ran on."""

    def __init__(self):
        self.seen = []

    def note(self):
        self.seen.append((asyncio.get_running_loop(), threading.get_ident()))

    @property
    def are_closed(self):
        return bool(self.seen) and all(loop.is_closed() for loop, _ in self.seen)


@pytest.fixture
def loops():
    return Loops()


@pytest.fixture
def add(app, loops):
    @app.task(shared=False)
    async def add(a, b):
        loops.note()
        await asyncio.sleep(0)
        return a + b

    return add


def test_eager_call_without_a_loop_runs_the_body_in_a_loop_of_its_own(add, loops):
    """The body runs in the calling thread, on a loop that is closed afterwards."""
    result = run(add, 1, 2)

    assert (result.get(), result.state) == (3, "SUCCESS")
    assert loops.are_closed
    assert loops.seen[0][1] == threading.get_ident()


def test_eager_call_leaves_the_threads_event_loop_alone(add):
    """What `asyncio.get_event_loop` gives in this thread is the same before and after."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        run(add, 1, 2)

        assert asyncio.get_event_loop() is loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def test_eager_call_where_a_loop_runs_uses_a_private_thread(add, loops):
    """The caller and its loop are blocked, and get the result; loop and thread are gone."""

    async def caller():
        return run(add, 1, 2)

    result = asyncio.run(caller())

    assert (result.get(), result.state) == (3, "SUCCESS")
    assert loops.are_closed
    assert loops.seen[0][1] != threading.get_ident()


def test_awaited_call_runs_the_body_on_the_callers_loop(add, loops):
    """`await call(...)` gives the same result, and the loop is free meanwhile."""

    async def caller():
        function = add.delay if add.app.conf.task_always_eager else add.s(1, 2).apply
        result = await eager.call(function, *((1, 2) if function == add.delay else ()))
        assert loops.seen[0][0] is asyncio.get_running_loop()
        return result

    assert asyncio.run(caller()).get() == 3


@pytest.mark.parametrize("where", ["plain", "on a loop", "awaited"])
def test_error_of_an_eager_body_is_the_result(app, where):
    """A body that raises has failed, with its traceback; with `throw` the error is raised."""

    @app.task(shared=False)
    async def fail():
        await asyncio.sleep(0)
        raise KeyError("no")

    async def on_a_loop():
        return fail.apply()

    if where == "plain":
        result = fail.apply()
    elif where == "on a loop":
        result = asyncio.run(on_a_loop())
    else:
        result = asyncio.run(eager.call(fail.apply))

    assert result.state == "FAILURE"
    assert "raise KeyError" in result.traceback
    with pytest.raises(KeyError):
        result.get()
    with pytest.raises(KeyError):
        fail.apply(throw=True)


def test_request_and_current_task_follow_the_eager_body(app):
    """They are right at every await, in child tasks and in threads, wherever it runs."""

    @app.task(bind=True, shared=False)
    async def who(self, n):
        def ids():
            return self.request.id, current_task.request.id, self.request.is_eager

        await asyncio.sleep(0.001 * (5 - n))
        child = await asyncio.create_task(asyncio.to_thread(ids))
        return [ids(), child, await asyncio.gather(asyncio.to_thread(ids))]

    async def together():
        calls = [eager.call(who.apply, args=[n], task_id=str(n)) for n in range(5)]
        return await asyncio.gather(*calls)

    for result in [who.apply([0], task_id="0"), *asyncio.run(together())]:
        expected = (result.id, result.id, True)
        assert result.get() == [expected, expected, [expected]]
    assert not current_task


def test_retry_of_an_eager_body_applies_it_again(app):
    """`self.retry` counts up, until the last attempt returns or the retries are used up."""
    seen = []

    @app.task(bind=True, max_retries=2, shared=False)
    async def flaky(self, good):
        seen.append(self.request.retries)
        await asyncio.sleep(0)
        if self.request.retries < good:
            raise self.retry(exc=ValueError("not yet"))
        return "done"

    assert run(flaky, 2).get() == "done"
    assert seen == [0, 1, 2]

    with pytest.raises(ValueError, match="not yet"):
        run(flaky, 3).get()


def test_autoretry_of_an_eager_body(app):
    """`autoretry_for` sees the error of the body, not its coroutine."""
    seen = []

    @app.task(autoretry_for=(ValueError,), max_retries=3, default_retry_delay=0, shared=False)
    async def flaky():
        seen.append(await asyncio.sleep(0, "try"))
        if len(seen) < 3:
            raise ValueError("not yet")
        return len(seen)

    async def caller():
        return run(flaky)

    assert run(flaky).get() == 3
    seen.clear()
    assert asyncio.run(caller()).get() == 3


def test_time_limits_are_left_out(app):
    """As with Celery's own eager tasks, nobody ends an eager body."""

    @app.task(soft_time_limit=0.001, time_limit=0.002, shared=False)
    async def slow():
        await asyncio.sleep(0.05)
        return "done"

    assert run(slow).get() == "done"


def test_async_handlers_share_the_loop_of_the_body(app, loops):
    """`before_start`, `on_success`, `after_return` are awaited, on the body's loop."""
    seen = []

    class Base(Task):
        async def before_start(self, task_id, args, kwargs):
            loops.note()
            seen.append("before_start")

        async def on_success(self, retval, task_id, args, kwargs):
            loops.note()
            seen.append("on_success")

        async def after_return(self, status, retval, task_id, args, kwargs, einfo):
            seen.append("after_return")

    @app.task(base=Base, shared=False)
    async def task():
        loops.note()

    run(task).get()

    assert seen == ["before_start", "on_success", "after_return"]
    assert len({loop for loop, _ in loops.seen}) == 1


def test_async_failure_handlers_are_awaited(app):
    """`on_failure` and `on_retry`, too."""
    seen = []

    class Base(Task):
        async def on_retry(self, exc, *args, **kwargs):
            seen.append(("on_retry", str(exc)))

        async def on_failure(self, exc, *args, **kwargs):
            seen.append(("on_failure", str(exc)))

    @app.task(
        base=Base, autoretry_for=(ValueError,), max_retries=1, default_retry_delay=0, shared=False
    )
    async def fail():
        raise ValueError("no")

    assert run(fail).state == "FAILURE"
    assert seen == [("on_retry", "no"), ("on_failure", "no")]


@pytest.mark.parametrize("kind", ["async", "plain"])
def test_custom_call_of_a_task_class(app, kind):
    """An overridden `__call__` is heard, be it `async def` or plain."""

    class Async(Task):
        async def __call__(self, *args):
            return "called", await self.run(*args)

    class Plain(Task):
        def __call__(self, *args):
            return "called", self.run(*args)

    @app.task(base=Async if kind == "async" else Plain, shared=False)
    async def double(n):
        await asyncio.sleep(0)
        return 2 * n

    assert tuple(run(double, 4).get()) == ("called", 8)


def test_plain_function_that_gives_an_awaitable(app, add):
    """Its value is awaited: a decorator may hide what it wraps."""

    @app.task(shared=False)
    def hidden(a, b):
        return asyncio.sleep(0, a + b)

    async def caller():
        return run(hidden, 1, 2)

    assert run(hidden, 1, 2).get() == 3
    assert asyncio.run(caller()).get() == 3


def test_plain_tasks_are_as_ever(app):
    """A `def` task runs in the calling thread, also where a loop runs."""

    @app.task(shared=False)
    def where():
        return threading.get_ident()

    async def caller():
        return run(where)

    assert run(where).get() == threading.get_ident()
    assert asyncio.run(caller()).get() == threading.get_ident()


def test_eager_call_inside_an_async_body_is_refused(app, add):
    """The error names the task and what to write instead; its advice works."""

    @app.task(shared=False)
    async def blocked():
        return run(add, 1, 2).get()

    @app.task(shared=False)
    async def advised():
        value = await add(1, 2)
        result = await eager.call(add.apply, args=[1, 2])
        in_thread = await asyncio.to_thread(add.apply, [1, 2])
        return value, result.result, in_thread.result

    with pytest.raises(eager.EagerCallError, match=r"add was called eagerly.*await add\(\.\.\.\)"):
        blocked.apply().get()
    assert tuple(advised.apply().get()) == (3, 3, 3)
    assert tuple(asyncio.run(eager.call(advised.apply)).get()) == (3, 3, 3)


def test_eager_calls_inside_plain_bodies(app, add, loops):
    """A `def` body may call async tasks eagerly; they know their parent."""

    @app.task(bind=True, shared=False)
    async def child(self):
        return self.request.parent_id, self.request.root_id

    @app.task(bind=True, shared=False)
    def plain_child(self):
        return self.request.parent_id, self.request.root_id

    @app.task(shared=False)
    def parent():
        return child.apply().result, plain_child.apply().result, asyncio.run(add(1, 2))

    result = parent.apply().get()

    # Celery 5.5 tells none, later ones tell the parent.
    assert result == (result[1], result[1], 3)


def test_direct_call_runs_the_body(add):
    """`await task(...)` is the body, and nothing else."""

    async def caller():
        return await add(1, 2)

    assert asyncio.run(caller()) == 3


def test_direct_call_of_a_retry_raises_the_error(app):
    """Called directly, `self.retry` raises its exception, as in a `def` task."""

    @app.task(bind=True, shared=False)
    async def flaky(self):
        raise self.retry(exc=ValueError("no"))

    with pytest.raises(ValueError, match="no"):
        asyncio.run(flaky())


def test_canvas_of_eager_async_tasks(app, add):
    """Chains, groups, chords and links apply each task in turn."""
    if not app.conf.task_always_eager:
        assert chain(add.s(1, 2), add.s(3)).apply().get() == 6
        assert group(add.s(1, n) for n in range(3)).apply().get() == [1, 2, 3]
        return

    @app.task(shared=False)
    async def total(numbers):
        await asyncio.sleep(0)
        return sum(numbers)

    linked = []

    @app.task(shared=False)
    async def link(value):
        linked.append(await asyncio.sleep(0, value))

    async def awaited():
        return await eager.call(chord([add.s(1, 1), add.s(2, 2)], total.s()).delay)

    assert chain(add.s(1, 2), add.s(3)).delay().get() == 6
    assert chord([add.s(1, 1), add.s(2, 2)], total.s()).delay().get() == 6
    assert asyncio.run(awaited()).get() == 6
    add.apply_async((1, 2), link=link.s())
    assert linked == [3]


def test_store_eager_result(app, add):
    """`task_store_eager_result` stores what the body returned."""
    add.store_eager_result = True

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a stored result, where delay is eager
        result = run(add, 1, 2)

        assert app.AsyncResult(result.id).result == 3


def test_signals_of_an_eager_call(app, add):
    """They see the result, not a coroutine."""
    seen = []

    def on_success(sender, result, **kwargs):
        seen.append(result)

    signals.task_success.connect(on_success, sender=add)
    try:
        run(add, 1, 2)
    finally:
        signals.task_success.disconnect(on_success, sender=add)

    assert seen == [3]


def test_caller_of_an_awaited_call_is_cancelled(app):
    """The body is cancelled and cleans up before the cancellation goes on."""
    events = []

    started = threading.Event()

    @app.task(shared=False)
    async def long():
        try:
            events.append("started")
            started.set()
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0)
            events.append("cleaned up")

    async def caller():
        waiting = asyncio.create_task(eager.call(long.apply))
        await asyncio.to_thread(started.wait)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return list(events)

    assert asyncio.run(caller()) == ["started", "cleaned up"]


def test_body_that_is_cancelled_from_within_has_failed(app):
    """As in the pool, not an end of the calling program."""

    @app.task(shared=False)
    async def cancelled():
        raise asyncio.CancelledError

    result = run(cancelled)

    assert result.state == "FAILURE"
    assert "was cancelled" in str(result.result)
    assert asyncio.run(eager.call(cancelled.apply)).state == "FAILURE"


def test_context_variables_reach_the_eager_body(app):
    """The body sees those of the caller, in all ways of calling."""
    variable = contextvars.ContextVar("variable", default=None)

    @app.task(shared=False)
    async def read():
        return variable.get()

    async def caller():
        variable.set("caller")
        return read.apply().get(), (await eager.call(read.apply)).get()

    variable.set("plain")
    assert read.apply().get() == "plain"
    assert asyncio.run(caller()) == ("caller", "caller")


def test_mocked_bodies_are_awaited(app, add):
    """A test may replace the body with a mock, and has the body again afterwards."""
    assert run(add, 1, 2).get() == 3
    with mock.patch.object(add, "run", mock.AsyncMock(return_value=42)):
        assert run(add, 1, 2).get() == 42
    assert run(add, 1, 2).get() == 3


def test_leftovers_of_a_body_end_with_the_call(app):
    """A task that the body leaves on its loop is cancelled, as by `asyncio.run`."""
    ended = []

    async def background():
        try:
            await asyncio.sleep(600)
        finally:
            ended.append(True)

    @app.task(shared=False)
    async def leave():
        leave.task = asyncio.create_task(background())
        await asyncio.sleep(0)

    run(leave)

    assert ended == [True]


def test_without_install_nothing_is_changed(app, add):
    """Celery alone returns the coroutine; `uninstall` gives that back."""
    eager.uninstall()

    coroutine = add.apply(args=(1, 2)).get()

    assert asyncio.run(coroutine) == 3


def test_override_of_apply_runs_async_bodies(app):
    """A task class gets it with one line, without `install`."""
    eager.uninstall()

    class Base(Task):
        def apply(self, *args, **kwargs):
            return eager.apply(self, super().apply, *args, **kwargs)

    @app.task(base=Base, bind=True, shared=False)
    async def task(self):
        await asyncio.sleep(0)
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return self.request.retries

    assert run(task).get() == 2
    eager.install()
    assert run(task).get() == 2


def test_propagated_retry_is_raised_as_ever(app):
    """With `throw`, Celery raises the retry itself."""

    @app.task(bind=True, shared=False)
    async def flaky(self):
        raise self.retry(countdown=0)

    with pytest.raises(Retry):
        flaky.apply(throw=True)


def test_lifespan_that_runs_is_used_by_eager_calls(app):
    """Within `running()`, direct and awaited calls use what it gives, on the loop it lives on."""
    events = []

    @lifespan(app)
    async def client():
        events.append(asyncio.get_running_loop())
        yield "the client"
        events.append("closed")

    @app.task(shared=False)
    async def use():
        events.append(asyncio.get_running_loop())
        return client.get(), await client.start()

    async def caller():
        async with client.running():
            direct = await use()
            result = await eager.call(run, use)
        return direct, result.get(), asyncio.get_running_loop()

    direct, value, loop = asyncio.run(caller())

    assert direct == value == ("the client", "the client")
    assert events == [loop, loop, loop, "closed"]


def test_lifespan_that_does_not_run_here_is_an_error_of_the_task(app):
    """Without `running()`, and on a loop of the call's own: the result says what to do."""

    @lifespan(app)
    async def client():
        yield "the client"

    @app.task(shared=False)
    async def use():
        return await client.start()

    async def blocking_caller():
        async with client.running():
            return run(use)

    with pytest.raises(LifespanError, match=r"async with .*running\(\)"):
        run(use).get()
    with pytest.raises(LifespanError, match="another event loop"):
        asyncio.run(blocking_caller()).get()


def test_eager_subprocess_leaves_nothing(app):
    """What a body has used of its loop, here a subprocess and its pipes, is closed with it."""

    @app.task(shared=False)
    async def echo():
        process = await asyncio.create_subprocess_exec("echo", "hello", stdout=-1)
        out, _ = await process.communicate()
        return out.decode().strip()

    async def blocking_caller():
        return run(echo)

    assert run(echo).get() == "hello"
    assert asyncio.run(blocking_caller()).get() == "hello"
    assert asyncio.run(eager.call(run, echo)).get() == "hello"


def test_cancelled_call_waits_for_the_cleanup_of_the_body(app):
    """However many steps that takes; only then the caller goes on."""
    events, started = [], threading.Event()

    @app.task(shared=False)
    async def long():
        started.set()
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.05)
            events.append("cleaned up")

    async def caller():
        waiting = asyncio.create_task(eager.call(run, long))
        await asyncio.to_thread(started.wait)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert events == ["cleaned up"]

    asyncio.run(caller())


def test_exit_in_a_body_leaves_the_loop_alone(app):
    """`SystemExit` ends the call, as it would with a `def` body, and not the caller's loop."""

    @app.task(shared=False)
    async def leave():
        raise SystemExit(3)

    async def caller():
        with pytest.raises(SystemExit):
            await eager.call(run, leave)
        return await asyncio.sleep(0, "alive")

    assert asyncio.run(caller()) == "alive"
    with pytest.raises(SystemExit):
        run(leave)


def test_retries_of_children_of_an_eager_body_are_one(app):
    """As in the pool: a group of nothing but Retry is one retry, of Ignore one Ignore."""
    attempts = []

    @app.task(bind=True, shared=False)
    async def grouped(self, verdict):
        attempts.append(self.request.retries)
        if self.request.retries:
            return "again"
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(child(self, verdict))

    async def child(task, verdict):
        raise task.retry(countdown=0) if verdict == "retry" else Ignore()

    assert grouped.apply(args=("retry",)).get() == "again"
    assert attempts == [0, 1]
    assert grouped.apply(args=("ignore",)).state == "IGNORED"


def test_error_beside_retries_of_an_eager_body(app):
    """A group with an error in it is an error."""

    @app.task(bind=True, shared=False)
    async def grouped(self):
        async with asyncio.TaskGroup() as group:
            group.create_task(child(self.retry))
            group.create_task(child(ValueError("no").with_traceback))

    async def child(call):
        raise call(None)

    result = grouped.apply()

    assert result.state == "FAILURE"
    assert isinstance(result.result, ExceptionGroup)
