"""What a worker process sets up once on its loop and shares between its tasks.

    @lifespan(app)
    async def browser():
        async with async_playwright() as p:
            async with await p.chromium.launch() as b:
                yield b

    @app.task
    async def title(url):
        page = await browser.get().new_page()
        ...

Each process of the pool enters the lifespans of its app before it takes tasks,
in the order of their definition, and closes them in the reverse order when its
last task has ended.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from asyncio import Task
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from celery.utils.log import get_logger

__all__ = ["Home", "Lifespan", "LifespanError", "lifespan", "lifespans_of"]

T = TypeVar("T")

logger = get_logger(__name__)

#: Seconds that a lifespan which was cancelled, since its time was over, has to end.
CANCEL_GRACE = 1.0

#: Seconds for the start and the end of a lifespan in :meth:`Lifespan.running`.
RUNNING_TIMEOUT = 60.0


class LifespanError(RuntimeError):
    """A lifespan could not start, has ended, or is asked for where it does not run."""


class Home:
    """Where lifespans run: one loop, with seconds for each start and each end.

    Their tasks get the context in which the home was made, not that of the
    Celery task which is the first to need one.
    """

    def __init__(self, timeout: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.timeout = timeout
        self._context = contextvars.copy_context()

    def create_task(self, coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run *coro* in an asyncio task that no Celery task owns."""
        # Not the loop's `create_task`: a lifespan may say who makes the tasks of bodies.
        return Task(coro, loop=self.loop, name=name, context=self._context.copy())


class _Run(Generic[T]):
    """One start of a lifespan: its generator, from end to end in one asyncio task.

    So what it enters, it leaves in the same task, as cancel scopes and task
    groups demand, and the cancellation of somebody who waits does not reach it.
    """

    def __init__(self, name: str, function: Callable[[], AsyncIterator[T]], home: Home) -> None:
        self._name = name
        self._function = function
        self._home = home
        self._value: asyncio.Future[T] = home.loop.create_future()
        self._leave = asyncio.Event()
        self._task = home.create_task(self._own(), f"lifespan {name}")

    @property
    def is_up(self) -> bool:
        """Whether its value can be used."""
        return self._value.done() and not self._task.done()

    @property
    def value(self) -> T:
        """What the generator has yielded; only while it is up."""
        return self._value.result()

    async def enter(self) -> None:
        """Wait until it is up; raises :exc:`LifespanError`."""
        either: set[asyncio.Future[Any]] = {self._task, self._value}
        await asyncio.wait(either, timeout=self._home.timeout, return_when=asyncio.FIRST_COMPLETED)
        if self.is_up:
            return
        if not self._task.done():
            await self._cancel()
            raise LifespanError(
                f"lifespan {self._name} did not start within {self._home.timeout:g}s "
                "(asyncpool_lifespan_timeout)"
            )
        exc = self._error()
        raise LifespanError(f"lifespan {self._name} did not start: {exc!r}") from exc

    async def exit(self, time_limit: float) -> None:
        """End it, within *time_limit* seconds; what goes wrong is logged."""
        was_running = not self._task.done()
        self._leave.set()
        await asyncio.wait({self._task}, timeout=time_limit)
        if not self._task.done():
            await self._cancel()
            logger.error("lifespan %s did not end in time and was cancelled", self._name)
        elif (exc := self._error()) is not None and was_running:
            logger.error("lifespan %s failed at its end: %r", self._name, exc, exc_info=exc)

    async def _own(self) -> None:
        try:
            async with asynccontextmanager(self._function)() as value:
                self._value.set_result(value)
                await self._leave.wait()
        except BaseException as exc:
            if self._value.done() and not self._leave.is_set():
                logger.error(
                    "lifespan %s has ended by itself: %r; `await %s.restart()` starts it again",
                    self._name,
                    exc,
                    self._name.rpartition(".")[2],
                    exc_info=exc,
                )
            raise

    async def _cancel(self) -> None:
        self._leave.set()
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=CANCEL_GRACE)

    def _error(self) -> BaseException | None:
        """Why the task ended."""
        if self._task.cancelled():
            return asyncio.CancelledError("it was cancelled from within")
        return self._task.exception()


class Lifespan(Generic[T]):
    """One resource of each worker process; :func:`lifespan` makes it.

    Arguments:
        function: an async generator function that yields the resource once.
        lazy: whether it is started by its first :meth:`start` only.
    """

    def __init__(self, function: Callable[[], AsyncIterator[T]], *, lazy: bool = False) -> None:
        if not inspect.isasyncgenfunction(function) or inspect.signature(function).parameters:
            raise TypeError(
                f"a lifespan must be an `async def` function without arguments that yields "
                f"once, got {function!r}"
            )
        self.name = f"{function.__module__}.{function.__qualname__}"
        self.lazy = lazy
        self.__doc__ = function.__doc__
        self._function = function
        self._home: Home | None = None
        self._run: _Run[T] | None = None
        #: A start or restart that is under way; all who ask meanwhile wait for it.
        self._pending: asyncio.Task[T] | None = None
        #: The ends of runs that have been replaced.
        self._ends: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        state = "not here" if self._home is None else "up" if self._is_up else "not started"
        return f"<Lifespan {self.name}{' lazy' if self.lazy else ''} {state}>"

    def get(self) -> T:
        """Return this process's object, the same one at each call until a restart.

        Raises :exc:`LifespanError` where it does not run: outside of the pool's
        processes and :meth:`running`, before the first :meth:`start` of a lazy
        one, and after it has ended by itself.
        """
        run = self._run
        if run is not None and run.is_up:
            return run.value
        if self._home is None:
            raise self._not_here()
        if run is None:
            raise LifespanError(
                f"lifespan {self.name} has not been started: it is lazy or still to come; "
                f"`await {self._function.__name__}.start()` starts it and returns its object"
            )
        raise LifespanError(
            f"lifespan {self.name} has ended by itself; the reason is in the log. "
            f"`await {self._function.__name__}.restart()` starts it again"
        )

    async def start(self) -> T:
        """Return this process's object; start it first if it does not run.

        However many ask for it at once, it is started once. The cancellation of
        those who wait does not disturb the start. Raises :exc:`LifespanError`
        when it fails; the next one who asks tries again.
        """
        home = self._here()
        if self._pending is None and self._is_up:
            return self.get()
        return await self._share(home)

    async def restart(self, broken: T | None = None) -> T:
        """Replace this process's object, for all who :meth:`get` it later; return the new one.

        The old one is closed when the new one is up, so for a moment there are
        both. Whoever asks while a restart is under way gets its result. With
        *broken*, the object that did not work, nothing happens when another task
        has already replaced it.

        Raises :exc:`LifespanError` when the new one does not start; the old one
        then stays. Lifespans that use this one are not restarted.
        """
        home = self._here()
        is_replaced = broken is not None and self._is_up and self.get() is not broken
        if self._pending is None and is_replaced:
            return self.get()
        return await self._share(home)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[T]:
        """Run it in this event loop, for tests: within it :meth:`get` works.

        Where it runs already, nothing is started. Starts lazy ones, too.
        """
        if self._home is not None:
            yield await self.start()
            return
        self.open(Home(RUNNING_TIMEOUT))
        try:
            yield await self.start()
        finally:
            await self.close(RUNNING_TIMEOUT)

    # For the worker process.

    def open(self, home: Home) -> None:
        """From now on it may run in *home*."""
        self._home = home

    async def close(self, time_limit: float) -> None:
        """End it within *time_limit* seconds; it cannot be started again here."""
        self._home = None
        if self._pending is not None:
            await asyncio.wait({self._pending}, timeout=time_limit)
        run, self._run = self._run, None
        if run is not None:
            await run.exit(time_limit)
        if self._ends:
            await asyncio.wait(self._ends, timeout=time_limit)

    # Inside.

    @property
    def _is_up(self) -> bool:
        return self._run is not None and self._run.is_up

    def _here(self) -> Home:
        """Its home, if this is the loop of it."""
        if self._home is None:
            raise self._not_here()
        if asyncio.get_running_loop() is not self._home.loop:
            raise LifespanError(
                f"lifespan {self.name} lives in another event loop of this process: start and "
                "restart it from `async def` tasks"
            )
        return self._home

    def _not_here(self) -> LifespanError:
        return LifespanError(
            f"lifespan {self.name} does not run here: it lives in the processes of "
            "`celery worker -P asyncpool`, between their start and their end. In a test, use "
            f"`async with {self._function.__name__}.running(): ...`"
        )

    async def _share(self, home: Home) -> T:
        """Start a run, or wait for the one that is starting."""
        if self._pending is None:
            self._pending = home.create_task(self._replace(home), f"start {self.name}")
            self._pending.add_done_callback(self._on_started)
        return await asyncio.shield(self._pending)

    async def _replace(self, home: Home) -> T:
        run: _Run[T] = _Run(self.name, self._function, home)
        await run.enter()
        old, self._run = self._run, run
        if old is not None:
            end = home.create_task(old.exit(home.timeout), f"end {self.name}")
            self._ends.add(end)
            end.add_done_callback(self._ends.discard)
        return run.value

    def _on_started(self, task: asyncio.Task[T]) -> None:
        self._pending = None
        if not task.cancelled():
            task.exception()  # whoever waits for it is told; all may have been cancelled


#: The lifespans of each app, in the order of their definition.
_lifespans: WeakKeyDictionary[Any, list[Lifespan[Any]]] = WeakKeyDictionary()


class _Decorator:
    """Makes a lifespan of a function, and a lifespan of *app*."""

    def __init__(self, app: Any, lazy: bool) -> None:
        self._app = app
        self._lazy = lazy

    def __call__(self, function: Callable[[], AsyncIterator[T]]) -> Lifespan[T]:
        made: Lifespan[T] = Lifespan(function, lazy=self._lazy)
        _lifespans.setdefault(_real(self._app), []).append(made)
        return made


def lifespan(app: Any, *, lazy: bool = False) -> _Decorator:
    """Let each process of *app*'s worker set up what the decorated function yields.

    The function is an async generator function without arguments that yields
    once, as for :func:`contextlib.asynccontextmanager`; ``TypeError`` is raised
    for any other. It becomes a :class:`Lifespan`.

    Arguments:
        app: the :class:`celery.Celery` app whose tasks share it.
        lazy: do not start it with the process, but when a task first awaits
            :meth:`Lifespan.start`.
    """
    return _Decorator(app, lazy)


def lifespans_of(app: Any, *, is_copy: bool = False) -> list[Lifespan[Any]]:
    """Return the lifespans of *app* in the order of their definition.

    Where *app* is the copy that a spawned process gets, the modules that it
    imports have defined theirs for another app, of the same name.
    """
    app = _real(app)
    found = _lifespans.get(app, [])
    if is_copy and not found:
        found = [
            one for other, all_ in _lifespans.items() if other.main == app.main for one in all_
        ]
    return list(found)


def _real(app: Any) -> Any:
    """The app behind a proxy, such as ``celery.current_app``."""
    real = getattr(app, "_get_current_object", None)
    return app if real is None else real()
