"""``@async_task(app)``: as ``@app.task``, and type checkers know what it makes.

    @async_task(app, bind=True, max_retries=3)
    async def fetch(self: AsyncTask[..., str], url: str) -> str: ...

    result = await fetch.adelay("http://...")  # AsyncResult[str]

Celery's own decorator cannot say so: what it makes depends on settings of the
app. The types here are for Celery's stubs, ``celery-types``.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, overload

from celery import Celery, shared_task

from .task import AsyncTask

__all__ = ["async_task"]

P = ParamSpec("P")
R = TypeVar("R")

if TYPE_CHECKING:

    class CoroutineTask(AsyncTask[P, R]):
        """A task with an ``async def`` body: to call it gives a coroutine, its results are R."""

        def __call__(  # type: ignore[override]
            self, /, *args: P.args, **kwargs: P.kwargs
        ) -> Coroutine[Any, Any, R]: ...

        def run(  # type: ignore[override]
            self, /, *args: P.args, **kwargs: P.kwargs
        ) -> Coroutine[Any, Any, R]: ...


class _Decorator(Protocol):
    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> CoroutineTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> AsyncTask[P, R]: ...


class _BoundDecorator(Protocol):
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> CoroutineTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> AsyncTask[P, R]: ...


@overload
def async_task(
    app: Celery[Any] | None = None,
    *,
    bind: Literal[True],
    base: type[AsyncTask[..., Any]] | None = None,
    **options: Any,
) -> _BoundDecorator: ...
@overload
def async_task(
    app: Celery[Any] | None = None,
    *,
    bind: Literal[False] = False,
    base: type[AsyncTask[..., Any]] | None = None,
    **options: Any,
) -> _Decorator: ...
def async_task(
    app: Celery[Any] | None = None,
    *,
    bind: bool = False,
    base: type[AsyncTask[..., Any]] | None = None,
    **options: Any,
) -> Any:
    """Make a task of *app*, an :class:`AsyncTask`, of the decorated function.

    Arguments:
        app: the :class:`celery.Celery` app; without one it is a task of any app,
            as with ``celery.shared_task``.
        bind: the function's first argument is the task.
        base: a subclass of :class:`AsyncTask`; by default the app's own task class
            where that is one, else :class:`AsyncTask`.
        options: as for ``app.task``.
    """
    if base is None and (app is None or not issubclass(app.Task, AsyncTask)):
        base = AsyncTask
    if base is not None:
        options["base"] = base
    make: Any = shared_task if app is None else app.task
    return make(bind=bind, **options)
