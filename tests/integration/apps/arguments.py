"""Tasks with all kinds of parameters, decorators and results."""

import asyncio
import contextlib
import contextvars
import functools
import inspect
import threading
import time
import warnings

import anyio
import celery
from asgiref.sync import async_to_sync, markcoroutinefunction, sync_to_async
from celery import signals

from .base import make_app
from .recording import record

app = make_app("arguments")


# Names.


@app.task
async def async_names(**kwargs):
    await asyncio.sleep(0)
    return kwargs


@app.task
def def_names(**kwargs):
    return kwargs


@app.task(bind=True, autoretry_for=(KeyError,))
async def async_bound_names(this, /, **kwargs):
    return kwargs


@app.task(bind=True, autoretry_for=(KeyError,))
def def_bound_names(this, /, **kwargs):
    return kwargs


class Called(app.Task):
    """Overrides `__call__`, as Flask's documentation has it."""

    abstract = True

    def __call__(self, /, *args, **kwargs):
        return self.run(*args, **kwargs)


@app.task(base=Called)
async def async_called_names(**kwargs):
    return kwargs


@app.task(base=Called)
def def_called_names(**kwargs):
    return kwargs


@app.task
async def async_assign(task, function=None, user=None):
    return [task, function, user]


@app.task
def def_assign(task, function=None, user=None):
    return [task, function, user]


# Calls of other tasks.


@app.task
async def async_double(x):
    await asyncio.sleep(0.01)
    return 2 * x


@app.task
def def_double(x):
    return 2 * x


@app.task
async def async_sum(x, y):
    await asyncio.sleep(0.01)
    return x + y


@app.task
def def_sum(x, y):
    return x + y


@app.task
async def async_slow(seconds):
    record("slow started")
    try:
        await asyncio.sleep(seconds)
    finally:
        record("slow ended")
    return seconds


async def _all(values):
    return list(await asyncio.gather(*(async_double(x) for x in values)))


@app.task
def calls(how, x):
    """A `def` body that calls an async task, in one of the ways that Python has."""
    if how == "run":
        return asyncio.run(async_double(x))
    if how == ".run":
        return asyncio.run(async_double.run(x))
    if how == "gather":
        return asyncio.run(_all([x, x + 1]))
    if how == "async_to_sync":
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it warns of what is no coroutine function
            return async_to_sync(async_double)(x)
    if how == "async_to_sync .run":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return async_to_sync(async_double.run)(x)
    if how == "Runner":
        with asyncio.Runner() as runner:
            return [runner.run(async_double(n)) for n in (x, x + 1)]
    if how == "def":
        return def_double(x)
    if how == "known":
        return [
            inspect.iscoroutinefunction(function)
            for function in (async_double.run, async_names.run, def_double.run, calls.run)
        ]
    raise AssertionError(how)


@app.task
async def acalls(how, x):
    """An `async def` body that calls other tasks."""
    if how == "await":
        return await async_double(x)
    if how == "await .run":
        return await async_double.run(x)
    if how == "group":
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(async_double.run(n)) for n in (x, x + 1)]
        return [task.result() for task in tasks]
    if how == "def":
        return def_double(x)
    if how == "thread":
        return await asyncio.to_thread(asyncio.run, _all([x]))
    if how == "sync_to_async":
        return await sync_to_async(def_double)(x)
    raise AssertionError(how)


# Decorators.


def where():
    """Whether a loop runs the calling code, and whether it is the process's own."""
    in_main = threading.current_thread() is threading.main_thread()
    return asyncio._get_running_loop() is not None, in_main


def run_with(run):
    """A plain decorator, as prefork projects have it: *run* runs the coroutine."""

    def decorator(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return run(function, *args, **kwargs)

        return wrapper

    return decorator


def _asyncio_run(function, *args, **kwargs):
    return asyncio.run(function(*args, **kwargs))


def _runner(function, *args, **kwargs):
    with asyncio.Runner() as runner:
        return runner.run(function(*args, **kwargs))


def _new_loop(function, *args, **kwargs):
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(function(*args, **kwargs))
    finally:
        loop.close()


def _current_loop(function, *args, **kwargs):
    return asyncio.get_event_loop().run_until_complete(function(*args, **kwargs))


def _async_to_sync(function, *args, **kwargs):
    return async_to_sync(function)(*args, **kwargs)


def _anyio(function, *args, **kwargs):
    return anyio.run(functools.partial(function, *args, **kwargs))


def _uvloop(function, *args, **kwargs):
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(function(*args, **kwargs))


def _pass(function, *args, **kwargs):
    return function(*args, **kwargs)


RUNNERS = {
    "asyncio_run": _asyncio_run,
    "runner": _runner,
    "new_loop": _new_loop,
    "current_loop": _current_loop,
    "async_to_sync": _async_to_sync,
    "anyio": _anyio,
    "uvloop": _uvloop,
    "pass": _pass,
}


async def _body(x, seconds=0.0):
    record("started", id=celery.current_task.request.id)
    await asyncio.sleep(seconds)
    return [x + 1, *where(), celery.current_task.request.id]


for _name, _run in RUNNERS.items():
    app.task(run_with(_run)(_body), name=f"apps.arguments.wrapped_{_name}")
    app.task(
        run_with(_run)(_body),
        name=f"apps.arguments.retried_{_name}",
        autoretry_for=(KeyError,),
    )
app.task(run_with(_pass)(run_with(_pass)(_body)), name="apps.arguments.wrapped_twice")
app.task(run_with(_asyncio_run)(run_with(_pass)(_body)), name="apps.arguments.wrapped_both")


class Runs:
    """A decorator that is a class."""

    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args, **kwargs):
        return asyncio.run(self.function(*args, **kwargs))


app.task(Runs(_body), name="apps.arguments.wrapped_class")


def awaits(function):
    """An async decorator."""

    @functools.wraps(function)
    async def wrapper(*args, **kwargs):
        return await function(*args, **kwargs)

    return wrapper


class Awaits:
    """A callable object that is async."""

    def __init__(self):
        functools.update_wrapper(self, _body)

    async def __call__(self, *args, **kwargs):
        return await _body(*args, **kwargs)


class Methods:
    """Methods of all kinds."""

    @classmethod
    async def of_class(cls, *args, **kwargs):
        return await _body(*args, **kwargs)

    @staticmethod
    async def static(*args, **kwargs):
        return await _body(*args, **kwargs)

    async def of_object(self, *args, **kwargs):
        return await _body(*args, **kwargs)


app.task(awaits(_body), name="apps.arguments.loop_awaits")
app.task(Awaits(), name="apps.arguments.loop_object")
app.task(Methods.of_class, name="apps.arguments.loop_class")
app.task(Methods.static, name="apps.arguments.loop_static")
app.task(Methods().of_object, name="apps.arguments.loop_method")


class OfPartial(app.Task):
    """Celery's decorator takes no partial functions, but a class does."""

    name = "apps.arguments.loop_partial"
    run = staticmethod(functools.partial(_body, seconds=0.01))


app.register_task(OfPartial)
app.task(
    markcoroutinefunction(run_with(_pass)(_body)),
    name="apps.arguments.loop_marked",
)


@functools.singledispatch
async def dispatched(x, seconds=0.0):
    return await _body(x, seconds)


app.task(dispatched, name="apps.arguments.wrapped_dispatch")


@app.task
def sometimes(x, seconds=0.0):
    """Gives a coroutine, or blocks."""
    if x:
        return _body(x, seconds)
    time.sleep(0.5)
    return [0, *where(), None]


# Task classes.


class RunsItself(app.Task):
    """Its `__call__` runs the coroutine."""

    abstract = True

    def __call__(self, *args, **kwargs):
        return asyncio.run(self.run(*args, **kwargs))


class RunsWithHelper(app.Task):
    """So does a helper, later."""

    abstract = True

    def __call__(self, *args, **kwargs):
        coroutine = super().__call__(*args, **kwargs)
        return self._wait_for(coroutine)

    def _wait_for(self, coroutine):
        return run_to_end(coroutine)


def run_to_end(coroutine):
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


class InContext(app.Task):
    """As Flask's documentation has it: the body runs within a context manager."""

    abstract = True

    def __call__(self, *args, **kwargs):
        with self.context():
            return self.run(*args, **kwargs)

    @contextlib.contextmanager
    def context(self):
        token = _tenant.set("context")
        try:
            yield
        finally:
            _tenant.reset(token)


_tenant = contextvars.ContextVar("tenant", default="none")


class Instead(app.Task):
    """Its `__call__` gives another coroutine in the place of its body's."""

    abstract = True

    def __call__(self, *args, **kwargs):
        return _body(*args, **kwargs)


class Afterwards(app.Task):
    """And here after it."""

    abstract = True

    def __call__(self, *args, **kwargs):
        self.run(*args, **kwargs)
        return _body(*args, **kwargs)


app.task(_body, base=Instead, name="apps.arguments.loop_instead")
app.task(_body, base=Afterwards, name="apps.arguments.loop_afterwards")
app.task(_body, base=RunsItself, name="apps.arguments.wrapped_call")
app.task(_body, base=RunsWithHelper, name="apps.arguments.wrapped_helper")


@app.task(base=InContext)
async def loop_context():
    await asyncio.sleep(0.01)
    return [_tenant.get(), *where()]


# Results.


async def _inner(seconds):
    record("inner ran", id=celery.current_task.request.id)
    await asyncio.sleep(seconds)
    return seconds


@app.task
async def forgotten(seconds, how="coroutine"):
    if how == "task":
        return asyncio.ensure_future(_inner(seconds))
    if how == "gather":
        return asyncio.gather(_inner(seconds), _inner(seconds))
    if how == "future":
        return asyncio.get_running_loop().create_future()
    return _inner(seconds)


@app.task(ignore_result=True)
async def quietly_forgotten(seconds, how="coroutine"):
    return _inner(seconds)


@app.task
def wrongly_forgotten(seconds, how="coroutine"):
    """A `def` body that gives a coroutine, which gives one."""

    async def outer():
        return _inner(seconds)

    return outer()


def _yields():
    yield 1


async def _yields_async():
    yield 1


@app.task
async def gives_generator(is_async):
    return _yields_async() if is_async else _yields()


@app.task(ignore_result=True)
async def quietly_gives_generator(is_async):
    return _yields_async() if is_async else _yields()


@app.task
def def_gives_generator(is_async):
    return _yields_async() if is_async else _yields()


@signals.task_postrun.connect
def on_postrun(task_id, state, **kwargs):
    record("postrun", id=task_id, state=state)
