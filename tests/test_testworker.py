"""The worker of `celery_asyncpool.testing`: in a thread of the test process."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import threading
import time
import warnings

import pytest
from celery import Celery, Task, chain, chord, current_app, group, signals

from celery_asyncpool import LifespanError, eager, lifespan
from celery_asyncpool.testing import start_worker

#: Seconds that anything may take on a slow and busy machine.
PATIENCE = 60


@pytest.fixture(autouse=True)
def nothing_left():
    """Each worker leaves no thread and no warning."""
    threads = set(threading.enumerate())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    # A socket, a loop, a coroutine that nobody has awaited.
    kinds = (ResourceWarning, RuntimeWarning)
    assert [str(w.message) for w in caught if issubclass(w.category, kinds)] == []
    assert set(threading.enumerate()) - threads == set()


@pytest.fixture
def app():
    """An app whose own broker and backend cannot be reached."""
    app = Celery(
        "tested",
        set_as_current=False,
        broker="redis://127.0.0.1:1",
        backend="redis://127.0.0.1:1",
    )
    yield app
    app.close()


@pytest.fixture
def add(app):
    @app.task(shared=False)
    async def add(a, b):
        await asyncio.sleep(0)
        return a + b

    return add


@pytest.fixture
def traced_tasks(app):
    """Tasks of each flavour, and receivers that see what the others have set."""
    variable = contextvars.ContextVar("variable", default="")
    seen = []

    @app.task(shared=False)
    async def async_task():
        await asyncio.sleep(0)
        variable.set(variable.get() + " body")
        return variable.get()

    @app.task(shared=False)
    def def_task():
        variable.set(variable.get() + " body")
        return variable.get()

    async def coroutine(sender, **kwargs):
        await asyncio.sleep(0)
        variable.set(variable.get() + " async")

    def plain(sender, **kwargs):
        variable.set(variable.get() + " plain")

    async def last(sender, **kwargs):
        await asyncio.sleep(0)
        seen.append(variable.get())

    for receiver in (coroutine, plain):
        signals.task_prerun.connect(receiver)
        signals.task_success.connect(receiver)
    signals.task_postrun.connect(last)
    yield async_task, def_task, seen
    for receiver in (coroutine, plain):
        signals.task_prerun.disconnect(receiver)
        signals.task_success.disconnect(receiver)
    signals.task_postrun.disconnect(last)


@pytest.mark.parametrize("how", ["worker", "apply"])
def test_receivers(app, traced_tasks, how):
    """Async receivers are awaited, in their order among plain ones, in the task's context."""
    *tasks, seen = traced_tasks
    for task in tasks:
        if how == "worker":
            with start_worker(app):
                assert get(task.delay()) == " async plain body"
        else:
            eager.install()
            try:
                result = contextvars.copy_context().run(task.apply)
                assert result.get() == " async plain body"
            finally:
                eager.uninstall()
    assert seen == [" async plain body async plain"] * 2


def get(result):
    return result.get(timeout=PATIENCE)


def wait_for(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_worker_runs_what_is_sent(app, add):
    """`delay`, chains, groups and chords, as with any worker."""

    @app.task(shared=False)
    async def total(numbers):
        return sum(numbers)

    with start_worker(app):
        assert get(add.delay(1, 2)) == 3
        assert get(chain(add.s(1, 2), add.s(3)).delay()) == 6
        assert get(group(add.s(1, n) for n in range(3)).delay()) == [1, 2, 3]
        assert get(chord([add.s(1, 1), add.s(2, 2)], total.s()).delay()) == 6


def test_app_whose_configuration_nobody_has_read():
    """It is read by the worker, and then not used for the broker."""
    app = Celery("fresh", set_as_current=False, broker="redis://127.0.0.1:1")
    with start_worker(app):
        assert app.connection_for_read().transport.driver_name == "memory"
    assert app.connection_for_read().port == 1
    app.close()


def test_async_bodies_run_side_by_side_on_one_loop(app):
    """On `worker.loop`, not in the test's thread; many at a time."""
    here = []
    together = 50

    @app.task(shared=False)
    async def meet():
        here.append(asyncio.get_running_loop())
        if len(here) == together:
            meet.all_are_here.set()
        await meet.all_are_here.wait()
        return threading.get_ident()

    meet.all_are_here = asyncio.Event()
    with start_worker(app) as worker:
        threads = {get(result) for result in [meet.delay() for _ in range(together)]}

        assert set(here) == {worker.loop}
        assert len(threads) == 1
        assert threading.get_ident() not in threads
    assert worker.loop.is_closed()


def test_plain_bodies_run_in_threads(app):
    """A `def` body may block; it is not on the loop."""

    @app.task(shared=False)
    def where():
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return threading.get_ident()

    with start_worker(app):
        assert get(where.delay()) != threading.get_ident()


def test_outcomes_are_those_of_a_worker(app):
    """Retries, failures, handlers, the request, signals: all is there."""
    seen = []

    class Base(Task):
        async def on_failure(self, exc, *args, **kwargs):
            seen.append((asyncio.get_running_loop(), str(exc)))

    @app.task(bind=True, max_retries=2, base=Base, shared=False)
    async def flaky(self, good):
        await asyncio.sleep(0)
        if self.request.retries < good:
            raise self.retry(exc=ValueError("not yet"), countdown=0)
        return self.request.retries, self.request.is_eager, bool(self.request.hostname)

    @signals.task_success.connect(sender=flaky)
    def on_success(result, **kwargs):
        seen.append(result)

    with start_worker(app) as worker:
        assert get(flaky.delay(2)) == [2, False, True]
        failed = flaky.delay(3)
        with pytest.raises(ValueError, match="not yet"):
            get(failed)
        assert "raise self.retry" in failed.traceback
        # Celery stores the outcome first, and tells of it then.
        wait_for(lambda: seen == [(2, False, True), (worker.loop, "not yet")], seen)


def test_last_attempt_has_the_last_word(app):
    """A retry leaves when the attempt before it has stored RETRY: its failure stays."""

    @app.task(bind=True, max_retries=2, shared=False)
    async def flaky(self):
        raise self.retry(exc=ValueError("no"), countdown=0)

    with start_worker(app):
        for result in [flaky.delay() for _ in range(50)]:
            with pytest.raises(ValueError, match="no"):
                get(result)


@pytest.mark.parametrize("kind", ["async", "def", "auto", "past"])
def test_attempts_do_not_overlap(app, kind):
    """The next attempt, one, begins when `task_postrun` of the last is through."""
    running, seen = set(), []

    @app.task(bind=True, max_retries=None, shared=False)
    async def async_flaky(self):
        if self.request.retries < 5:
            async with asyncio.TaskGroup() as group:
                for _ in range(3):
                    group.create_task(ask(self))
        return self.request.retries

    async def ask(task):
        task.retry(countdown=0)

    @app.task(bind=True, max_retries=None, shared=False)
    def def_flaky(self):
        if self.request.retries < 5:
            raise self.retry(countdown=0)
        return self.request.retries

    @app.task(
        bind=True,
        max_retries=None,
        autoretry_for=(KeyError,),
        default_retry_delay=0,
        shared=False,
    )
    async def auto_flaky(self):
        if self.request.retries < 5:
            raise KeyError
        return self.request.retries

    @app.task(bind=True, max_retries=None, shared=False)
    async def past_flaky(self):
        if self.request.retries < 5:
            raise Task.retry(self, countdown=0)
        return self.request.retries

    @signals.task_prerun.connect
    def begin(task_id, **kwargs):
        seen.append(task_id in running)
        running.add(task_id)

    @signals.task_postrun.connect
    def end(task_id, **kwargs):
        time.sleep(0.005)
        running.discard(task_id)

    tasks = {"async": async_flaky, "def": def_flaky, "auto": auto_flaky, "past": past_flaky}
    task = tasks[kind]
    app.finalize()  # now: shared tasks of other tests may bring the guard with them
    before = task.retry, app.send_task
    with start_worker(app):
        assert [get(result) for result in [task.delay() for _ in range(10)]] == [5] * 10

    assert seen == [False] * 60
    assert (task.retry, app.send_task) == before


def test_retry_that_cannot_be_sent(app):
    """The task fails, and its handler hears of it."""
    seen = []

    class Base(Task):
        def on_failure(self, exc, *args, **kwargs):
            seen.append(type(exc).__name__)

    @app.task(bind=True, base=Base, shared=False)
    async def flaky(self):
        raise self.retry(queue="none of task_queues", countdown=0)

    app.conf.task_create_missing_queues = False
    with start_worker(app):
        result = flaky.delay()
        with pytest.raises(Exception, match="none of task_queues"):
            get(result)
        wait_for(lambda: seen == ["QueueNotFound"], seen)


def test_results_are_serialised(app):
    """As between processes: what JSON cannot carry fails here, too."""

    @app.task(shared=False)
    async def bad():
        return object()

    with start_worker(app), pytest.raises(Exception, match="not JSON serializable"):
        get(bad.delay())


def test_all_queues_are_served(app, add):
    """Wherever a task is sent, by its options or by routes."""
    app.conf.task_routes = {add.name: {"queue": "routed"}}

    with start_worker(app):
        assert get(add.delay(1, 2)) == 3
        assert get(add.apply_async((1, 2), queue="other")) == 3


def test_tasks_that_come_later_run(app, add):
    """A test may define a task, or replace a body, while the worker runs."""
    with start_worker(app):
        assert get(add.delay(1, 2)) == 3

        @app.task(shared=False)
        async def later():
            return "later"

        async def replaced(a, b):
            return "replaced"

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(add, "run", replaced)
            assert get(add.delay(1, 2)) == "replaced"
        assert get(later.delay()) == "later"
        assert get(add.delay(1, 2)) == 3


def test_app_is_as_before(app, add, monkeypatch):
    """Its broker, its backend, its settings and Celery's own state come back."""
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:2")
    app.conf.task_always_eager = True
    amqp, backend = app.amqp, app.backend
    settings, current = dict(app.conf.changes), current_app._get_current_object()

    with start_worker(app):
        assert current_app._get_current_object() is app
        assert app.connection_for_write().transport.driver_name == "memory"
        assert get(add.delay(1, 2)) == 3

    assert (app.amqp, app.backend) == (amqp, backend)
    assert app.conf.changes == settings
    assert current_app._get_current_object() is current
    assert os.environ["CELERY_BROKER_URL"] == "redis://127.0.0.1:2"
    assert app.connection_for_write().port == 2
    assert add.delay(1, 2).get() == 3
    assert isinstance(add.__trace__, type(None))


def test_messages_and_results_end_with_the_worker(app, add):
    """What one test has sent and nobody has run, the next one does not run."""
    ran = []

    @app.task(shared=False)
    async def note():
        ran.append(True)

    with start_worker(app):
        note.apply_async(countdown=3600)
        assert get(add.apply_async((1, 2), task_id="same")) == 3
    with start_worker(app):
        assert app.AsyncResult("same").state == "PENDING"
        assert get(add.delay(1, 2)) == 3

    assert ran == []


def test_lifespans_live_as_long_as_the_worker(app):
    """They start before the first task, on the loop of the bodies, and end after the last."""
    events = []

    @lifespan(app)
    async def client():
        events.append(("start", asyncio.get_running_loop()))
        yield "the client"
        events.append(("end", asyncio.get_running_loop()))

    @lifespan(app, lazy=True)
    async def browser():
        yield client.get() + " and the browser"

    @app.task(shared=False)
    async def use():
        events.append(("body", asyncio.get_running_loop()))
        return client.get(), await browser.start()

    with start_worker(app) as worker:
        assert get(use.delay()) == ["the client", "the client and the browser"]

    assert events == [(what, worker.loop) for what in ("start", "body", "end")]


def test_lifespan_that_does_not_start(app, add):
    """The test that asks for the worker gets the reason; the next worker starts."""
    broken = [True]

    @lifespan(app)
    async def client():
        if broken:
            raise OSError("no network")
        yield

    with pytest.raises(LifespanError, match="no network"):
        with start_worker(app):
            pass

    broken.clear()
    with start_worker(app):
        assert get(add.delay(1, 2)) == 3


def test_end_cancels_what_runs(app):
    """Bodies that run when the test ends, and what they have left, clean up; nothing is stored."""
    events = []
    started = threading.Event()

    async def background():
        try:
            await asyncio.sleep(3600)
        finally:
            events.append("background")

    @app.task(shared=False)
    async def long():
        long.background = asyncio.create_task(background())
        await asyncio.sleep(0)
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            events.append("body")

    with start_worker(app):
        result = long.delay()
        assert started.wait(PATIENCE)
    assert events == ["body", "background"]
    assert result._cache is None


def test_revoke_ends_a_body(app):
    """`revoke(terminate=True)` cancels that one; its result says so."""
    started, cleaned = threading.Event(), threading.Event()

    @app.task(shared=False)
    async def long():
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cleaned.set()

    with start_worker(app):
        result = long.delay()
        assert started.wait(PATIENCE)
        result.revoke(terminate=True)

        assert result.get(timeout=PATIENCE, propagate=False).args == ("terminated",)
        assert result.state == "REVOKED"
        assert cleaned.wait(PATIENCE)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_body_that_wants_the_end_has_failed(app, add, error):
    """It ends neither the worker nor the tests."""

    @app.task(shared=False)
    async def bad():
        raise error

    with start_worker(app):
        with pytest.raises(Exception, match=r"SystemExit|KeyboardInterrupt|was cancelled"):
            get(bad.delay())
        assert get(add.delay(1, 2)) == 3


def test_eager_call_on_the_workers_loop_is_refused(app, add):
    """As everywhere; `await` works."""

    @app.task(shared=False)
    async def blocked():
        return add.apply((1, 2)).get()

    @app.task(shared=False)
    async def advised():
        return await add(1, 2), (await eager.call(add.apply, (1, 2))).result

    @app.task(shared=False)
    def plain():
        return add.apply((1, 2)).result

    eager.install()
    try:
        with start_worker(app):
            with pytest.raises(Exception, match="called eagerly"):
                get(blocked.delay())
            assert get(advised.delay()) == [3, 3]
            assert get(plain.delay()) == 3
    finally:
        eager.uninstall()


def test_only_one_worker_at_a_time(app):
    """The second one is refused with a sentence; the first one lives on."""
    other = Celery("other", set_as_current=False)
    with start_worker(app):
        with pytest.raises(RuntimeError, match="one at a time"):
            with start_worker(other):
                pass
    other.close()
