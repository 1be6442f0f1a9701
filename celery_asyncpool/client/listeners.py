"""One thread for each result backend waits for everybody's results.

A listener knows who waits for which task, on which loop. Its way to hear of a
result is the backend's: :mod:`.redis_results`, :mod:`.rpc_results`, or
:mod:`.polling` where the backend tells nothing by itself.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

from celery import states
from celery.result import ResultBase
from celery.utils.log import get_logger

from .results import leaves_of, parents_of

__all__ = [
    "Listener",
    "Waiter",
    "backend_of",
    "expect_replies",
    "expect_results",
    "is_expected",
    "listener_of",
]

logger = get_logger(__name__)

#: Seconds after which a listener for whom nobody waits ends.
IDLE = 10.0

#: What a listener has heard of a task: its final state, or why it cannot know.
Heard = dict[str, Any] | BaseException


class Waiter:
    """Waits in a coroutine for any number of tasks; to be used on one loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._arrived: deque[tuple[str, Heard]] = deque()
        self._woken: asyncio.Future[None] | None = None

    async def next(self) -> tuple[str, Heard]:
        """Return the next task that has ended, and its end."""
        while not self._arrived:
            self._woken = self.loop.create_future()
            await self._woken
        return self._arrived.popleft()

    def on_arrived(self, heard: list[tuple[str, Heard]]) -> None:
        """On the loop: the listener has heard of these tasks."""
        self._arrived.extend(heard)
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


class Listener:
    """Knows who waits for which task of one backend, and runs the thread that hears.

    Arguments:
        key: where :func:`listener_of` finds it.
        app: the Celery app.
        backend: the backend of the tasks that wait, None for the app's own, of
            which the thread has one of its own as Celery's rule for threads wants.
    """

    #: Whether the thread ends when nobody has waited for a while.
    ends_when_idle = True

    def __init__(self, key: Any, app: Any, backend: Any) -> None:
        self.key = key
        self.app = app
        self._given_backend = backend
        self._waiters: dict[str, list[Waiter]] = {}
        #: Tasks that somebody has begun to wait for, or that nobody waits for any more.
        self._changed: set[str] = set()
        self._thread: threading.Thread | None = None
        self.stopping = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._waiters)} tasks>"

    def add(self, waiter: Waiter, task_ids: Iterable[str]) -> None:
        """*waiter* wants to hear of the ends of these tasks."""
        with _lock:
            for task_id in task_ids:
                self._waiters.setdefault(task_id, []).append(waiter)
                self._changed.add(task_id)
            self._start()
        self.wake()

    def remove(self, waiter: Waiter, task_ids: Iterable[str]) -> None:
        """*waiter* does not want to hear of these any more."""
        with _lock:
            for task_id in task_ids:
                waiters = self._waiters.get(task_id, [])
                if waiter in waiters:
                    waiters.remove(waiter)
                    if not waiters:
                        del self._waiters[task_id]
                        self._changed.add(task_id)
        self.wake()

    def look(self, task_ids: Iterable[str]) -> dict[str, Heard]:
        """In any thread: return those of the tasks that have ended, without waiting."""
        backend = self.backend()
        metas = {task_id: backend.get_task_meta(task_id) for task_id in task_ids}
        return {task_id: meta for task_id, meta in metas.items() if is_final(meta)}

    def stop(self) -> None:
        """Ask the thread to end, and give it a second."""
        self.stopping = True
        self.wake()
        if self._thread is not None:
            self._thread.join(1.2)

    def wake(self) -> None:
        """Make the thread look at what has changed, and whether it should stop."""

    def run(self) -> None:
        """In the thread: hear, until :meth:`may_end`."""
        raise NotImplementedError

    # For the thread.

    def backend(self) -> Any:
        """The backend to be used in the running thread."""
        return unwrapped(self._given_backend or self.app.backend)

    def take_changes(self) -> tuple[list[str], list[str]]:
        """Return whom to begin to listen for, and whom no longer, since the last call."""
        with _lock:
            changed, self._changed = self._changed, set()
            wanted = [task_id for task_id in changed if task_id in self._waiters]
            return wanted, [task_id for task_id in changed if task_id not in self._waiters]

    def waited_for(self) -> list[str]:
        """The tasks that somebody waits for."""
        with _lock:
            return list(self._waiters)

    def is_waited_for(self, task_id: str) -> bool:
        """Whether somebody waits for that task."""
        return task_id in self._waiters

    def deliver(self, heard: dict[str, Heard]) -> None:
        """Tell all who wait."""
        by_waiter: dict[Waiter, list[tuple[str, Heard]]] = {}
        with _lock:
            for task_id, what in heard.items():
                for waiter in self._waiters.pop(task_id, ()):
                    by_waiter.setdefault(waiter, []).append((task_id, what))
                    self._changed.add(task_id)
        for waiter, items in by_waiter.items():
            try:
                waiter.loop.call_soon_threadsafe(waiter.on_arrived, items)
            except RuntimeError:
                continue  # its loop has been closed: nobody waits any more

    def fail_all(self, error: BaseException) -> None:
        """Nothing can be heard of any task: tell all who wait."""
        self.deliver({task_id: error for task_id in self.waited_for()})

    def may_end(self) -> bool:
        """Whether the thread has to end now; it is then no longer this listener's."""
        with _lock:
            if not self.stopping and (self._waiters or not self.ends_when_idle):
                return False
            self._thread = None
            if _listeners.get(self.key) is self:
                del _listeners[self.key]
            return True

    def _start(self) -> None:
        if self._thread is None and not self.stopping:
            _listeners[self.key] = self
            self._thread = threading.Thread(
                target=self._main, name="asyncpool-results", daemon=True
            )
            self._thread.start()

    def _main(self) -> None:
        try:
            self.run()
        except BaseException as exc:
            logger.exception("waiting for results with %r has failed", self)
            with _lock:
                self._thread = None
                _listeners.pop(self.key, None)
            self.fail_all(exc)


def is_final(meta: Any) -> bool:
    """Whether *meta* tells a task's end."""
    return meta.get("status") in states.READY_STATES


def unwrapped(backend: Any) -> Any:
    """Return the real backend where the pool has put its own in front of it."""
    return getattr(backend, "unwrapped", backend)


def backend_of(result: Any) -> Any:
    """Return the real backend of *result*."""
    return unwrapped(result.backend)


_lock = threading.RLock()
_listeners: dict[Any, Listener] = {}


def listener_of(app: Any, backend: Any = None) -> Listener:
    """Return the one listener of this process for that backend, by default the app's own."""
    own = unwrapped(app.backend)
    backend = own if backend is None else backend
    uri = _identity(backend)
    is_own = uri == _identity(own)
    key = (app, uri) if is_own else (app, id(backend))
    with _lock:
        listener = _listeners.get(key)
        if listener is None:
            listener = _class_for(backend)(key, app, None if is_own else backend)
            _listeners[key] = listener
        return listener


def expect_replies(app: Any, timeout: float | None) -> None:
    """In a publishing thread: make results come to this process's listener.

    For RPC results only: others are stored where anybody finds them.
    """
    from celery.backends.rpc import RPCBackend

    from .rpc_results import RPCListener

    if isinstance(unwrapped(app.backend), RPCBackend):
        listener = listener_of(app)
        assert isinstance(listener, RPCListener)
        listener.adopt_thread(timeout)


def expect_results(app: Any, result: Any) -> None:
    """In a publishing thread, after :func:`expect_replies`: *result* is of what was sent."""
    from celery.backends.rpc import RPCBackend

    from .rpc_results import RPCListener

    if isinstance(unwrapped(app.backend), RPCBackend) and isinstance(result, ResultBase):
        listener = listener_of(app)
        assert isinstance(listener, RPCListener)
        listener.expect(leaf.id for leaf in (*leaves_of(result), *parents_of(result)))


def is_expected(result: Any) -> bool:
    """Whether the value of *result* comes as a message that only async code gets."""
    from .rpc_results import RPCListener

    with _lock:
        ours = [one for one in _listeners.values() if isinstance(one, RPCListener)]
    return any(one.expects(leaf.id) for one in ours for leaf in leaves_of(result))


def _identity(backend: Any) -> tuple[type, str]:
    return type(backend), str(backend.as_uri(include_password=True))


def _class_for(backend: Any) -> type[Listener]:
    """How to hear of results in *backend*."""
    from celery.backends.rpc import RPCBackend

    if isinstance(backend, RPCBackend):
        from .rpc_results import RPCListener

        return RPCListener
    try:
        from celery.backends.redis import RedisBackend
    except ImportError:
        pass
    else:
        if isinstance(backend, RedisBackend):
            from .redis_results import RedisListener

            return RedisListener
    from .polling import PollingListener

    return PollingListener


def _stop_all() -> None:
    for listener in list(_listeners.values()):
        listener.stop()


def _forget_all() -> None:
    """In a forked child: the threads are the parent's."""
    global _lock
    _lock = threading.RLock()
    _listeners.clear()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_forget_all)
