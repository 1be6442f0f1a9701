"""The guard: blocking calls of Celery's on a thread whose event loop is running.

``asyncpool_blocking_calls`` says what they get: a warning, once for each line
that makes one (``"warn"``), a ``RuntimeError`` (``"error"``), or nothing
(``"allow"``). To wait on the loop of a pool process is an error always: it stops
all its tasks, perhaps the one that is waited for.

It stands where all these calls come through: ``app.send_task`` of each app that
it was installed for, and Celery's classes of results. In a thread without a
running loop it costs one look.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import celery
import kombu
from celery.result import AsyncResult, EagerResult, ResultSet
from celery.utils.log import get_logger

from ..settings import blocking_calls
from .listeners import is_expected

__all__ = ["check_publish", "install", "install_in_pool"]

logger = get_logger(__name__)

#: Code that makes the call for somebody else: its caller is the one to be named.
LIBRARIES = (
    f"{Path(celery.__file__).parent}/",
    f"{Path(kombu.__file__).parent}/",
    f"{Path(__file__).parent.parent}/",
)

#: Packages that wrap Celery's functions.
WRAPPERS = ("sentry_sdk", "opentelemetry", "ddtrace", "newrelic", "elasticapm", "functools")

#: What waits for results, of Celery's classes.
WAITS: tuple[tuple[type, str], ...] = (
    (AsyncResult, "get"),
    (AsyncResult, "wait"),
    (ResultSet, "get"),
    (ResultSet, "join"),
    (ResultSet, "join_native"),
)

_sites: set[tuple[str, int]] = set()
_is_exempt: Callable[[], bool] | None = None


def install(app: Any) -> None:
    """Watch what *app* publishes, and waiting for its results; once."""
    if "asyncpool_guarded" in app.__dict__:
        return
    blocking_calls(app.conf)
    app.__dict__["asyncpool_guarded"] = True
    if not getattr(app.send_task, "is_guarded", False):
        app.send_task = GuardedSend(app, app.send_task)
    if not hasattr(AsyncResult.get, "_celery_asyncpool"):
        for cls, name in WAITS:
            setattr(cls, name, _guarded_wait(cls.__dict__[name]))


def install_in_pool(app: Any, is_exempt: Callable[[], bool]) -> None:
    """As :func:`install`, in a pool process.

    *is_exempt* tells of a call on the loop's thread that it does not block the
    loop: Celery's own tracer makes it, whose calls leave for threads.
    """
    global _is_exempt
    install(app)
    _is_exempt = is_exempt


class GuardedSend:
    """``app.send_task`` that looks where it is called.

    What it calls is looked up at each call: tools replace the method of the class.
    """

    def __init__(self, app: Any, send: Callable[..., Any]) -> None:
        functools.update_wrapper(self, send)
        self.app = app
        self._own = app.__dict__.get("send_task")
        #: Seen also where something else has been put around this.
        self.is_guarded = True

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        check_publish(self.app, args[0] if args else kwargs.get("name", "?"))
        send = self._own or functools.partial(self.app.__class__.send_task, self.app)
        return send(*args, **kwargs)


def check_publish(app: Any, name: str) -> None:
    """Speak up where publishing the task *name* would block a running loop."""
    if asyncio._get_running_loop() is None or (_is_exempt is not None and _is_exempt()):
        return
    site = _Site.find()
    if site.function == "send_task":
        twin = f'await apply_async(app.signature("{name}", ...))'
    elif site.is_task:
        twin = f"await {name}.{'adelay' if site.function == 'delay' else 'aapply_async'}(...)"
    else:
        twin = "await apply_async(signature)"
    _speak(
        blocking_calls(app.conf),
        site,
        f"{name}: .{site.function}() blocks the event loop while it publishes; use `{twin}`",
    )


def _check_wait(result: Any) -> None:
    if not _would_wait(result):
        return
    if asyncio._get_running_loop() is None:
        if is_expected(result):
            raise RuntimeError(
                f"{_name(result)}: async code has sent this task, and its RPC result comes to "
                "async code of this process only; use `await get(result)`"
            )
        return
    if not result.app.__dict__.get("asyncpool_guarded") or (
        _is_exempt is not None and _is_exempt()
    ):
        return
    policy = blocking_calls(result.app.conf)
    site = _Site.find()
    end = "for the result"
    if _is_exempt is not None and threading.current_thread() is threading.main_thread():
        policy = "error"  # not a loop that a `def` body runs in its thread
        end += " and can never end well, since the tasks of this process wait with it"
    _speak(
        policy,
        site,
        f"{_name(result)}: .{site.function}() blocks the event loop while it waits {end}; "
        "use `await get(result)`",
    )


def _name(result: Any) -> str:
    return getattr(result, "id", None) or "a set of results"


def _would_wait(result: Any) -> bool:
    if isinstance(result, ResultSet):
        return any(_would_wait(member) for member in result.results or ())
    return not (isinstance(result, EagerResult) or result.ignored or result._cache)


def _guarded_wait(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wait(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        _check_wait(self)
        return method(self, *args, **kwargs)

    wait._celery_asyncpool = True  # type: ignore[attr-defined]
    return wait


class _Site:
    """The line that made a call, and which function of Celery's it called."""

    def __init__(self, frame: FrameType, function: str, is_task: bool) -> None:
        self.file = frame.f_code.co_filename
        self.line = frame.f_lineno
        self.function = function
        self.is_task = is_task

    @classmethod
    def find(cls) -> _Site:
        """The nearest caller that is neither Celery nor a wrapper of it."""
        frame: FrameType | None = sys._getframe(1)
        function, is_task = "apply_async", False
        while frame is not None and _is_library(frame):
            if frame.f_code.co_filename.startswith(LIBRARIES[0]):
                function = frame.f_code.co_name
                is_task = isinstance(frame.f_locals.get("self"), celery.Task)
            elif isinstance(frame.f_locals.get("self"), GuardedSend):
                function, is_task = "send_task", False
            frame = frame.f_back
        return cls(frame or sys._getframe(1), function, is_task)


def _is_library(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return frame.f_code.co_filename.startswith(LIBRARIES) or module in WRAPPERS


def _speak(policy: str, site: _Site, what: str) -> None:
    message = f"{site.file}:{site.line}: {what} (asyncpool_blocking_calls)"
    if policy == "error":
        raise RuntimeError(message)
    if policy == "warn" and (site.file, site.line) not in _sites:
        _sites.add((site.file, site.line))
        logger.warning("%s", message)
