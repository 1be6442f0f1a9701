"""Workers of another pool, which call an ``async def`` task and never await it.

With ``ignore_result`` such a task ends there as SUCCESS and has never run. Where
this package is installed, the worker says so at its start, and an
:class:`~celery_asyncpool.task.AsyncTask` fails in the place of SUCCESS.

Only for Celery's own pools: those of other packages may well await.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from typing import Any
from weakref import WeakSet

from celery import current_app
from celery.signals import celeryd_after_setup, worker_process_init
from celery.utils.log import get_logger
from celery.utils.nodenames import gethostname

from .handover import PROCESS_VARIABLE
from .tasktypes import BodyWrapper, body_attribute, custom_call, is_async

__all__ = ["install", "on_worker"]

logger = get_logger(__name__)

#: Celery's own pools, by the modules of their classes.
POOLS = {
    "celery.concurrency.prefork": "prefork",
    "celery.concurrency.solo": "solo",
    "celery.concurrency.thread": "threads",
    "celery.concurrency.gevent": "gevent",
    "celery.concurrency.eventlet": "eventlet",
}

#: Tells a spawned process of a worker, a fresh interpreter, what its pool is.
VARIABLE = "CELERY_ASYNCPOOL_OTHER_POOL"

CURE = (
    "Start the worker with -P asyncpool, or set worker_pool = 'celery_asyncpool:Pool'; tasks of "
    "another worker need a queue that this one does not read"
)


#: Tasks that fail where they are not awaited, in this process.
_refused: WeakSet[Any] = WeakSet()


def install() -> None:
    """From now on workers of this program look at their pools; harmless when repeated."""
    celeryd_after_setup.connect(on_worker, dispatch_uid="celery_asyncpool.unawaited")
    worker_process_init.connect(_on_process, dispatch_uid="celery_asyncpool.unawaited")


def on_worker(sender: str, instance: Any, **kwargs: Any) -> None:
    """A worker is set up, with all its tasks, and neither forks nor runs any yet.

    If its pool is one of Celery's own, name in the log what never runs there, and
    let it fail.
    """
    pool_cls = instance.pool_cls
    pool = POOLS.get(getattr(pool_cls, "__module__", ""))
    if pool is None:
        os.environ.pop(VARIABLE, None)
        return
    os.environ[VARIABLE] = pool
    unawaited = [task for _, task in sorted(instance.app.tasks.items()) if _never_runs(task)]
    if unawaited:
        logger.error(
            "the pool of this worker, %s, calls async def tasks and never awaits them: they do "
            "not run, and may end as SUCCESS all the same. %s. These tasks: %s",
            pool,
            CURE,
            ", ".join(task.name for task in unawaited),
        )
    _refuse_all(instance.app, pool)


def _on_process(**kwargs: Any) -> None:
    """A process of the pool starts; a spawned one has imported its tasks anew."""
    pool = os.environ.get(VARIABLE)
    if pool is None or os.environ.get(PROCESS_VARIABLE) == str(os.getpid()):
        return
    from celery.app import trace  # there by now, and not for every `celery` command

    for task in _refuse_all(current_app, pool):
        task.__trace__ = trace.build_tracer(
            task.name, task, current_app.loader, gethostname(), app=current_app
        )


def _never_runs(task: Any) -> bool:
    """Whether a call of *task* gives a coroutine, for certain."""
    call = custom_call(type(task))
    return is_async(getattr(task, body_attribute(task)) if call is None else call)


def _refuse_all(app: Any, pool: str) -> list[Any]:
    """Let each AsyncTask of *app* fail where it is not awaited; return those that were new."""
    module = sys.modules.get(f"{__package__}.task")
    if module is None:
        return []  # nobody has imported the class
    new = [
        task
        for task in app.tasks.values()
        if isinstance(task, module.AsyncTask) and task not in _refused
    ]
    for task in new:
        _refused.add(task)
        _refuse(task, pool)
    return new


def _refuse(task: Any, pool: str) -> None:
    cls = type(task)
    call = custom_call(cls)
    if call is None:
        # Outside of what autoretry_for has put around the body: it must not see this.
        task.run = AwaitedOrRefused(task.run, task, pool)
        return

    @functools.wraps(cls.__call__)
    def __call__(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return _check(call(self, *args, **kwargs), self, pool)

    cls.__call__ = __call__


class AwaitedOrRefused(BodyWrapper):
    """A task's ``run`` whose coroutine is an error where a tracer has called it."""

    def __init__(self, function: Any, task: Any, pool: str) -> None:
        super().__init__(function)
        self.task = task
        self.pool = pool

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return _check(self.function(*args, **kwargs), self.task, self.pool)


def _check(value: Any, task: Any, pool: str) -> Any:
    """Return *value*, which a call of *task* has given; raise where nobody will await it."""
    if not inspect.isawaitable(value):
        return value
    request = task.request_stack.top
    if request is None or request.called_directly or request.is_eager:
        return value  # for somebody who awaits it, like `await task(...)`, or an eager call
    if inspect.iscoroutine(value):
        value.close()  # else Python says, too, that nobody has awaited it
    raise RuntimeError(
        f"task {task.name} has not run: it is an async def, and the pool of this worker, {pool}, "
        f"never awaits it. {CURE}"
    )
