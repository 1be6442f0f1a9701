"""The tasks as the pool has found them, for each process that it forks, whenever that is.

Celery's consumer builds tracers in the worker's main process, too, and tools (Sentry)
put their wrappers around a task's function there. A process that is forked later would
find the wrapper in the place of the function: what has to be innermost, since it awaits
the body, would come outermost, and the tool would see a coroutine and no error.
"""

from __future__ import annotations

from typing import Any

from celery.app.task import Task

__all__ = ["put_back", "remember"]

_attributes: dict[Any, dict[str, Any]] = {}
_calls: dict[type, Any] = {}


def remember(app: Any) -> None:
    """In the main process, before the first fork: keep what the tasks of *app* are."""
    _attributes.clear()
    _calls.clear()
    for task in app.tasks.values():
        _attributes[task] = dict(vars(task))
        for cls in _own_classes(task):
            _calls[cls] = vars(cls).get("__call__")


def put_back(app: Any) -> None:
    """In a process that was forked: let the tasks of *app* be what they were."""
    for task in app.tasks.values():
        if task in _attributes:
            vars(task).clear()
            vars(task).update(_attributes[task])
            for cls in _own_classes(task):
                _put_back_call(cls)


def _own_classes(task: Any) -> list[type]:
    """The classes of *task* that are not Celery's."""
    mro = type(task).__mro__
    return list(mro[: mro.index(Task)])


def _put_back_call(cls: type) -> None:
    if vars(cls).get("__call__") is _calls[cls]:
        return
    if _calls[cls] is None:
        delattr(cls, "__call__")
    else:
        setattr(cls, "__call__", _calls[cls])  # noqa: B010
