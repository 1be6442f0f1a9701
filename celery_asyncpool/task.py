"""``AsyncTask``: a task class with awaitable twins of what Celery only does blocking."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from celery import Task

from . import checkpoints, eager, oncommit, unawaited
from .client import guard
from .client.publish import call_in_thread, publish
from .tasktypes import mark_task, use_models

if TYPE_CHECKING:
    from celery.exceptions import Retry
    from celery.result import AsyncResult, EagerResult

__all__ = ["AsyncTask", "apply_async"]

P = ParamSpec("P")
R = TypeVar("R")

if TYPE_CHECKING:
    Base = Task
else:

    class Base(Task, Generic[P, R]):
        """``Task`` that takes types also where Celery's own does not."""

        abstract = True


# Also for workers that no command line has started, which loads `cli`.
unawaited.install()


class AsyncTask(Base[P, R]):
    """Use it with ``Celery(task_cls="celery_asyncpool:AsyncTask")``, or as ``base=``."""

    abstract = True

    @classmethod
    def bind(cls, app: Any) -> Any:
        """As ``Task.bind``; from now on blocking calls on event loops are named."""
        guard.install(app)
        bound = super().bind(app)
        use_models(cls)
        mark_task(cls)
        return bound

    def apply(self, /, *args: Any, **kwargs: Any) -> EagerResult[R]:
        """As ``Task.apply``, for ``async def`` bodies too; see :func:`.eager.apply`."""
        result: EagerResult[R] = eager.apply(self, super().apply, *args, **kwargs)
        return result

    async def adelay(self, /, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """``delay`` for async code: returns when the broker has the message."""
        return await self.aapply_async(args, kwargs)

    async def aapply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult[R]:
        """``apply_async`` for async code; the same options.

        Raises ``kombu.exceptions.OperationalError`` when the broker cannot be
        reached within ``broker_connection_timeout``.
        """
        call = functools.partial(self.apply_async, args, kwargs, **options)  # type: ignore[arg-type]
        result: AsyncResult[R] = await _publish(self.app, call)
        return result

    def delay_on_commit(self, /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Django: ``delay`` when the transaction is committed, at once where there is none."""
        oncommit.call_on_commit(self, functools.partial(self.delay, *args, **kwargs))

    def apply_async_on_commit(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Django: as :meth:`delay_on_commit`, with the options of ``apply_async``."""
        oncommit.call_on_commit(self, self._call_later(args, kwargs, options))

    async def adelay_on_commit(self, /, *args: P.args, **kwargs: P.kwargs) -> None:
        """:meth:`delay_on_commit` for async code.

        Async code has no transaction of its own: without one that surrounds it, as that
        of a test, the message has left when this returns.
        """
        await oncommit.acall_on_commit(self, functools.partial(self.delay, *args, **kwargs))

    async def aapply_async_on_commit(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """As :meth:`adelay_on_commit`, with the options of ``apply_async``."""
        await oncommit.acall_on_commit(self, self._call_later(args, kwargs, options))

    def _call_later(self, args: Any, kwargs: Any, options: Any) -> Callable[[], Any]:
        return functools.partial(self.apply_async, args, kwargs, **options)

    async def aupdate_state(
        self,
        task_id: str | None = None,
        state: str | None = None,
        meta: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """``update_state`` for async code: returns when the backend has the state."""
        await call_in_thread(self.update_state, task_id, state, meta, **kwargs)

    async def aretry(self, /, *args: Any, **kwargs: Any) -> Retry:
        """``retry`` for async bodies: ``raise await self.aretry(countdown=5)``.

        In the pool the message leaves when this attempt is over and RETRY is stored:
        a limit that is over just now does not both fail the task and retry it, and
        the next attempt does not overlap with this one. An attempt has one next
        attempt, however many of its children ask for it.
        """
        return self.retry(*args, **kwargs)

    async def acheckpoint(self, state: Any) -> None:
        """Store *state* in the result backend, for a later run under this task's id.

        Returns when it is stored. It goes when the task ends well, and otherwise
        expires as results do. Raises ``kombu.exceptions.EncodeError`` for what the
        result serializer cannot encode, and ``ImproperlyConfigured`` where the result
        backend is no store of keys and values.
        """
        await checkpoints.save(self, state)

    async def alast_checkpoint(self) -> Any:
        """What :meth:`acheckpoint` has stored last in any run of this task; None: nothing."""
        return await checkpoints.load(self)


async def apply_async(
    signature: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """``signature.apply_async()`` for async code: signatures, chains, groups and chords.

    Returns the result object that Celery gives: ``AsyncResult``, or
    ``GroupResult`` for a group.
    """
    call = functools.partial(signature.apply_async, args or (), kwargs or {}, **options)
    return await _publish(signature.app, call)


async def _publish(app: Any, call: Callable[[], Any]) -> Any:
    guard.install(app)
    if app.conf.task_always_eager:
        return await eager.call(call)
    return await publish(app, call)
