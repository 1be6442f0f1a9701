"""Arguments, decorators and results of all kinds, on a real worker."""

import asyncio
import importlib
import sys

import pytest
from apps import recording
from celery.canvas import chunks, xmap, xstarmap
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from worker import wait_for

from celery_asyncpool import eager, testing
from tests.wrappers import all_names

TIMEOUT = 60


@pytest.fixture(scope="module")
def worker(redis_transport, start_worker):
    with start_worker(redis_transport, "arguments", "-c", 20, "--processes", 1) as worker:
        yield worker


@pytest.fixture
def s(worker, flavour):
    """A signature of the task of this flavour."""
    return lambda task, /, *args, **kwargs: worker.client.s(f"{flavour}_{task}", *args, **kwargs)


@pytest.mark.parametrize("task", ["names", "bound_names", "called_names"])
def test_any_name(s, task):
    """Every name that a parameter of the package has is free for a task's own.

    But for `self`, which Celery's worker claims with every pool.
    """
    kwargs = {name: number for number, name in enumerate(all_names()) if name != "self"}

    assert s(task).apply_async(kwargs=kwargs).get(TIMEOUT) == kwargs


def test_task_and_function(s):
    """Parameters named `task` and `function` may be given by keyword."""
    assert s("assign", task="t", function="f").delay().get(TIMEOUT) == ["t", "f", None]
    assert s("assign", "t", user=3).delay().get(TIMEOUT) == ["t", None, 3]


# Celery's own tasks that call others.


@pytest.mark.parametrize("kind", ["async", "def"])
def test_map(worker, kind):
    """`map`, `starmap` and `chunks` give the values of the tasks."""
    app = worker.client.app
    double, add = worker.client.s(f"{kind}_double"), worker.client.s(f"{kind}_sum")
    pairs = [(n, n) for n in range(5)]

    assert xmap(double, range(3), app=app).apply_async().get(TIMEOUT) == [0, 2, 4]
    assert xstarmap(add, pairs, app=app).apply_async().get(TIMEOUT) == [0, 2, 4, 6, 8]
    assert chunks(add, pairs, 2, app=app).apply_async().get(TIMEOUT) == [[0, 2], [4, 6], [8]]


@pytest.mark.parametrize(
    ("options", "error"),
    [({"soft_time_limit": 1}, SoftTimeLimitExceeded), ({"time_limit": 1}, TimeLimitExceeded)],
)
def test_limits_of_a_map(worker, options, error):
    """The limits of a map end what it waits for, and the next task is not begun."""
    before = len(worker.records("slow started"))
    slow = worker.client.s("async_slow")
    result = xmap(slow, [60, 60], app=worker.client.app).apply_async(**options)

    with pytest.raises(error):
        result.get(TIMEOUT)
    assert len(worker.records("slow started")) == before + 1
    wait_for(lambda: len(worker.records("slow ended")) == before + 1, "the inner task ended")


def test_revoke_of_a_map(worker):
    """A revoke ends what a map waits for, and nothing else."""
    before = len(worker.records("slow started"))
    result = xmap(worker.client.s("async_slow"), [60, 60], app=worker.client.app).apply_async()
    wait_for(lambda: len(worker.records("slow started")) == before + 1, worker.tail)
    pids = worker.pool_pids()

    worker.client.app.control.revoke(result.id, terminate=True)

    with pytest.raises(TaskRevokedError):
        result.get(TIMEOUT)
    wait_for(lambda: len(worker.records("slow ended")) == before + 1, "the inner task ended")
    worker.wait_settled(result)
    assert worker.pool_pids() == pids


# Calls of other tasks.


@pytest.mark.parametrize(
    ("how", "value"),
    [
        ("run", 6),
        (".run", 6),
        ("gather", [6, 8]),
        ("async_to_sync", 6),
        ("async_to_sync .run", 6),
        ("Runner", [6, 8]),
        ("def", 6),
        ("known", [True, True, False, False]),
    ],
)
def test_def_body_calls_tasks(worker, how, value):
    """A `def` body that calls an async task gets its coroutine, as Python says."""
    assert worker.client.send("calls", how, 3).get(TIMEOUT) == value


@pytest.mark.parametrize(
    ("how", "value"),
    [
        ("await", 6),
        ("await .run", 6),
        ("group", [6, 8]),
        ("def", 6),
        ("thread", [6]),
        ("sync_to_async", 6),
    ],
)
def test_async_body_calls_tasks(worker, how, value):
    """An async body calls tasks as functions."""
    assert worker.client.send("acalls", how, 3).get(TIMEOUT) == value


# Decorators.

#: Plain functions around an `async def` that run a loop themselves.
RUNNERS = ["asyncio_run", "runner", "new_loop", "async_to_sync", "anyio", "uvloop"]
WRAPPED = [*RUNNERS, "both", "class", "call", "helper"]

#: Those whose loop hears of a limit: not uvloop's, which takes no step of Python, nor
#: asgiref's, which runs in another thread, while the body's own waits in a lock.
INTERRUPTED = ["asyncio_run", "runner", "new_loop", "anyio"]

#: Those that give its coroutine.
PASSING = ["pass", "twice", "dispatch"]

#: What is known to be async.
ON_LOOP = ["awaits", "object", "class", "static", "method", "partial", "marked", "instead"]


@pytest.mark.parametrize("name", WRAPPED)
def test_plain_decorator_that_runs_a_loop(worker, name):
    """A plain decorator around an `async def` may run it on a loop of its own."""
    result = worker.client.send(f"wrapped_{name}", 1)

    assert result.get(TIMEOUT) == [2, True, False, result.id]


@pytest.mark.parametrize("name", [f"wrapped_{name}" for name in PASSING] + ["retried_pass"])
def test_plain_decorator_that_gives_the_coroutine(worker, name):
    """What a plain decorator gives is awaited on the loop."""
    result = worker.client.send(name, 1)

    assert result.get(TIMEOUT) == [2, True, True, result.id]


@pytest.mark.parametrize("name", [f"retried_{name}" for name in RUNNERS])
def test_plain_decorator_with_autoretry(worker, name):
    """`autoretry_for` changes nothing of that."""
    result = worker.client.send(name, 1)

    assert result.get(TIMEOUT) == [2, True, False, result.id]


@pytest.mark.parametrize("name", ON_LOOP)
def test_known_to_be_async(worker, name):
    """Async functions of all kinds need no thread."""
    result = worker.client.send(f"loop_{name}", 1)

    assert result.get(TIMEOUT) == [2, True, True, result.id]


def test_call_in_a_context(worker):
    """A plain `__call__` that runs no loop has the value of `self.run()` within its `with`."""
    assert worker.client.send("loop_context").get(TIMEOUT) == ["context", True, True]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="asyncio makes no loop for who asks")
def test_current_loop_of_a_thread(worker):
    """`asyncio.get_event_loop()` makes a loop, as in the main thread of a prefork process."""
    for _ in range(3):
        result = worker.client.send("wrapped_current_loop", 1)
        assert result.get(TIMEOUT) == [2, True, False, result.id]


def test_threads_are_named(worker):
    """The worker's log tells which async tasks a plain decorator has put into threads."""
    [line] = [line for line in worker.log().splitlines() if "plain decorator" in line]

    assert "apps.arguments.wrapped_pass" in line
    assert "loop_" not in line
    assert "double" not in line


@pytest.mark.parametrize(
    "name", [*(f"wrapped_{name}" for name in (*PASSING, *INTERRUPTED)), "loop_instead"]
)
@pytest.mark.parametrize(
    ("options", "error"),
    [({"soft_time_limit": 1}, SoftTimeLimitExceeded), ({"time_limit": 1}, TimeLimitExceeded)],
)
def test_limits_behind_a_plain_decorator(worker, name, options, error):
    """Limits end the body wherever it is awaited; its process and neighbours live on."""
    pids = worker.pool_pids()
    result = worker.client.send(name, 1, 60, **options)

    with pytest.raises(error):
        result.get(TIMEOUT)
    worker.wait_settled(result)
    assert worker.pool_pids() == pids


@pytest.mark.parametrize("name", [*PASSING, "asyncio_run"])
def test_revoke_behind_a_plain_decorator(worker, name):
    """So does a revoke."""
    pids = worker.pool_pids()
    result = worker.client.send(f"wrapped_{name}", 1, 60)
    worker.wait_started(result)

    worker.client.app.control.revoke(result.id, terminate=True)

    with pytest.raises(TaskRevokedError):
        result.get(TIMEOUT)
    worker.wait_settled(result)
    assert worker.pool_pids() == pids


def test_coroutines_are_not_learned(worker):
    """A `def` body that once gave a coroutine may block the next time: it does so in a thread."""
    assert worker.client.send("sometimes", 1).get(TIMEOUT)[1:3] == [True, True]
    assert worker.client.send("sometimes", 0).get(TIMEOUT)[1:3] == [False, False]


# Results.


@pytest.mark.parametrize("how", ["coroutine", "task", "gather", "future"])
@pytest.mark.parametrize("task", ["forgotten", "wrongly_forgotten"])
def test_forgotten_await(worker, task, how):
    """A body that returns what nobody has awaited fails, with a sentence that says so."""
    result = worker.client.send(task, 60, how)

    with pytest.raises(TypeError, match=rf"task apps.arguments.{task} .*`await` is missing"):
        result.get(TIMEOUT)
    worker.wait_settled(result)
    assert "never awaited" not in worker.log()
    assert "never retrieved" not in worker.log()


def test_awaitable_of_a_call(worker):
    """A `__call__` that returns an awaitable when its body has ended fails: its time is over."""
    with pytest.raises(TypeError, match=r"loop_afterwards .*`await` is missing"):
        worker.client.send("loop_afterwards", 1).get(TIMEOUT)


def state_of(worker, result):
    """What `task_postrun` was told of a task that stores nothing."""
    records = wait_for(lambda: worker.records("postrun", id=result.id), worker.tail)
    return [line["state"] for line in records]


def test_forgotten_await_without_result(worker):
    """It fails also where nobody looks at the result, and what it forgot does not run."""
    result = worker.client.send("quietly_forgotten", 0)

    assert state_of(worker, result) == ["FAILURE"]
    assert worker.records("inner ran", id=result.id) == []


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("task", ["gives_generator", "def_gives_generator"])
def test_generator(worker, task, is_async):
    """A body that returns a generator fails, be it async or not."""
    with pytest.raises(TypeError, match="returned a generator, which nobody would run"):
        worker.client.send(task, is_async).get(TIMEOUT)


@pytest.mark.parametrize("is_async", [True, False])
def test_generator_without_result(worker, is_async):
    """Also where nobody looks at the result."""
    assert state_of(worker, worker.client.send("quietly_gives_generator", is_async)) == ["FAILURE"]


# The same eagerly, and in the worker for tests.


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The app in this process."""
    patch = pytest.MonkeyPatch()
    patch.setenv("ASYNCPOOL_TEST_BROKER", "memory://")
    patch.setenv("ASYNCPOOL_TEST_BACKEND", "cache+memory://")
    patch.setenv(recording.VARIABLE, str(tmp_path_factory.mktemp("record") / "record"))
    app = importlib.import_module("apps.arguments").app
    eager.install()
    yield app
    eager.uninstall()
    patch.undo()
    app.close()
    del sys.modules["apps.arguments"]


@pytest.fixture(params=["eager", "eager.call", "worker for tests"])
def call(request, app):
    """Call the task of that name, or a signature, with arguments; return its value."""

    def signature(task, args):
        return app.tasks[f"apps.arguments.{task}"].s(*args) if isinstance(task, str) else task

    if request.param == "eager":
        yield lambda task, *args: signature(task, args).apply().get()
    elif request.param == "eager.call":
        yield lambda task, *args: asyncio.run(eager.call(signature(task, args).apply)).get()
    else:
        with testing.start_worker(app):
            yield lambda task, *args: signature(task, args).apply_async().get(timeout=TIMEOUT)


@pytest.mark.parametrize("name", [*WRAPPED, *PASSING])
def test_plain_decorators_in_tests(call, name):
    """Plain decorators work as in production, whether they run a loop or not."""
    assert call(f"wrapped_{name}", 1)[:2] == [2, True]


@pytest.mark.parametrize("name", ON_LOOP)
def test_async_in_tests(call, name):
    """So does what is async."""
    assert call(f"loop_{name}", 1)[:2] == [2, True]


def test_call_in_a_context_in_tests(call):
    """A plain `__call__` has the value of `self.run()` within its `with`."""
    assert call("loop_context")[0] == "context"


def test_calls_of_tasks_in_tests(call):
    """Bodies that call tasks get what Python says."""
    assert [call("calls", how, 3) for how in ("run", ".run", "def")] == [6, 6, 6]
    assert [call("acalls", how, 3) for how in ("await", "await .run", "def")] == [6, 6, 6]


@pytest.mark.parametrize("kind", ["async", "def"])
def test_map_in_tests(call, app, kind):
    """`map`, `starmap` and `chunks` give the values of the tasks."""
    double, add = (app.tasks[f"apps.arguments.{kind}_{name}"] for name in ("double", "sum"))

    assert call(double.map(range(3))) == [0, 2, 4]
    assert call(add.starmap([(1, 2), (3, 4)])) == [3, 7]
    assert call(add.chunks([(1, 2), (3, 4)], 1).group()) == [[3], [7]]


@pytest.mark.parametrize("how", ["coroutine", "task", "gather", "future"])
@pytest.mark.parametrize("task", ["forgotten", "wrongly_forgotten"])
def test_forgotten_await_in_tests(call, task, how):
    """A forgotten `await` is named."""
    with pytest.raises(TypeError, match="`await` is missing"):
        call(task, 0.01, how)


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("task", ["gives_generator", "def_gives_generator"])
def test_generator_in_tests(call, task, is_async):
    """A generator is refused."""
    with pytest.raises(TypeError, match="returned a generator, which nobody would run"):
        call(task, is_async)
