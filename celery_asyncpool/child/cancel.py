"""Soft limit, hard limit and termination, delivered into a running body.

An async body is ended by ``task.cancel()``, as asyncio means it, so that
TaskGroup, ``asyncio.timeout``, ``wait_for``, ``gather`` and anyio clean up. For
the soft limit the body's coroutine is wrapped: on its way in, the
CancelledError is exchanged for :class:`SoftLimitCancelled`, which is both
Celery's ``SoftTimeLimitExceeded`` and a ``CancelledError``, and the task is
uncancelled, so that the body may go on to await with working timeouts.

Either may get lost on its way (:mod:`.swallowing`). Then it is told again
(:mod:`.reminders`): the hard limit to a body that goes on, the soft limit to one
that goes on and has not caught it under its name.

A task with ``on_soft_limit`` gets no exception at its soft limit: the hook is
called beside the body (:mod:`.softhook`).

A ``def`` body is ended by an exception that CPython raises in its thread
(``PyThreadState_SetAsyncExc``): at its next bytecode, so not inside a call
into C.

What the pool has decided of a job leaves the body's frame as a BaseException,
past ``autoretry_for`` and the user's own wrappers, and the outermost wrapper
makes of it what Celery's tracer has to see (:mod:`.tasks`).
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError as TaskBodyCancelled
from contextvars import Context
from types import FrameType
from typing import Any

import greenlet
from celery.exceptions import Retry, SoftTimeLimitExceeded, TimeLimitExceeded
from celery.utils.log import get_logger

from ..core.timelimits import Action, BodyClock, BodyState, Limits, Verdict
from ..outcomes import unwrapped
from . import swallowing
from .raising import raise_in_thread, take_back
from .reminders import Reminders, cancel_those_who_went_on, remind
from .softhook import SoftLimitHook
from .threadloops import wake_loops

__all__ = ["BodyControl", "BodyStopped", "LimitedBody", "SoftLimitCancelled", "StopThread"]

logger = get_logger(__name__)


#: Whether a time-out may take the soft limit for its own: ``Timeout.__aexit__`` looks for
#: any kind of CancelledError.
GUARDS = sys.version_info >= (3, 13)

#: How often in a row a body is told that drops each cancellation by way of ``wait_for``.
ATTEMPTS = 10


class SoftLimitCancelled(SoftTimeLimitExceeded, asyncio.CancelledError):
    """The soft limit as an async body sees it; stored as ``SoftTimeLimitExceeded``."""


class BodyStopped(BaseException):
    """The pool has decided the job's outcome; carries what the tracer has to see.

    *error* is an exception to raise for the tracer, None where the tracer must
    report nothing, since somebody else does.
    """

    def __init__(self, error: Exception | None) -> None:
        super().__init__(error)
        self.error = error


class StopThread(BaseException):
    """Raised in the thread of a ``def`` body at its hard limit or termination."""


class BodyControl:
    """Starts, times and ends the body of one job.

    Arguments:
        limits: the job's.
        grace: seconds that a cancelled body has to end (``asyncpool_cancel_grace``).
        loop: the process's event loop.
        who: the task's name and id, for the log.
        on_started: called, on the loop's thread, when a body with a hard limit starts.
        on_cancelled: likewise when its hard limit, or a termination, cancels it.
        on_limit: likewise when a limit is over: whether it is the soft one.
        on_over: likewise when there is nothing more of it that limits or terminations
            are for; not always, since the job's end tells as much.
        on_stuck: likewise, with the verdict and the body's stack, when a cancelled
            body has not ended in time.
    """

    def __init__(
        self,
        limits: Limits,
        grace: float,
        loop: asyncio.AbstractEventLoop,
        who: str,
        *,
        on_started: Callable[[], None],
        on_cancelled: Callable[[], None],
        on_limit: Callable[[bool], None],
        on_over: Callable[[], None],
        on_stuck: Callable[[Verdict, str], None],
    ) -> None:
        self.clock = BodyClock(limits, grace)
        self.who = who
        self._loop = loop
        self._on_started = on_started
        self._on_cancelled = on_cancelled
        self._on_limit = on_limit
        self._on_over = on_over
        self._told_over = False
        self._on_stuck = on_stuck
        #: Held while the clock moves: a `def` body moves it from its thread.
        self._lock = threading.RLock()
        self._timer: asyncio.TimerHandle | None = None
        #: The job's asyncio task.
        self.task: asyncio.Task[Any] | None = None
        #: The coroutine, or the thread, in which the body runs.
        self._coroutine: Any = None
        self._thread: int | None = None
        #: Whether something was raised in that thread, and may not have arrived.
        self._raised = False
        #: Whether the body was called in a thread, wherever it runs now.
        self._in_thread = False
        #: Called at the soft limit, in the place of an exception in the body.
        self.hook: SoftLimitHook | None = None
        #: The context in which the body runs.
        self._context: Context | None = None
        #: The limit of which the body is still to be told.
        self.due: Action | None = None
        #: What it was told with last; None: nothing that could still get lost.
        self._told: BaseException | None = None
        #: The greenlets in which it was then.
        self._told_in: list[Any] = []
        #: How often it was told of the soft limit again, since it had swallowed it.
        self._repeats = 0
        #: Whether it was told in a block that drops cancellations only.
        self._in_dropping_block = False
        self._reminders: Reminders | None = None
        #: Time-outs through which the soft limit is on its way; see :meth:`guard`.
        self._guarded: list[Any] = []
        #: Those in which the body was when it was told.
        self._around: list[Any] = []
        #: Cancellations for the soft limit that the asyncio task still counts.
        self.owed = 0
        #: Where the body was when it was cancelled.
        self._stack = ""

    # Called around the body, on the thread that runs it.

    def start(self, thread: int | None) -> None:
        """The body starts, in *thread* or on the loop; raises if it must not."""
        with self._lock:
            if not self.clock.start(time.monotonic()):
                raise BodyStopped(None)
            self._thread = thread
            self._in_thread = thread is not None
            if self.hook is not None:
                # The object itself: a copy would not know what the body puts there.
                self._context = greenlet.getcurrent().gr_context
        if thread is None:
            self._on_start()
        elif self.clock.next_due() is not None:
            self._loop.call_soon_threadsafe(self._on_start)

    @property
    def has_started(self) -> bool:
        """Whether this job's body has had its start; Celery may call others for it."""
        return self.clock.state is not BodyState.WAITING

    @property
    def in_thread(self) -> bool:
        """Whether the body was called in a thread, wherever it runs now."""
        return self._in_thread

    @property
    def has_ended(self) -> bool:
        """Whether :meth:`end` has been called for a body that had started."""
        return self.clock.state is BodyState.ENDED

    def watch(self, awaitable: Any) -> Any:
        """The body's *awaitable*, in a form to be awaited instead of it."""
        # A future, say, is no coroutine: nothing can be thrown into it.
        coroutine = awaitable if hasattr(awaitable, "throw") else _await(awaitable)
        self._coroutine = coroutine
        body = LimitedBody(coroutine, self)
        if self._thread is None:
            return body
        try:
            self._leave_thread()
        except BaseException:
            coroutine.close()  # its time was over before its first step
            raise
        return self._move_to_loop(body)

    def _leave_thread(self) -> None:
        """In the body's thread, which is about to wait for the loop, in a lock.

        Nothing can be raised there: from here on the body's time ends the
        asyncio task in which it is awaited, or is kept until there is one.
        """
        with self._lock:
            self._thread = self.task = None

    async def _move_to_loop(self, body: Any) -> Any:
        """Await the *body* of a function that was called in a thread."""
        with self._lock:
            self.task = asyncio.current_task()
            if self.due is not None or self.clock.state is not BodyState.RUNNING:
                self._cancel_task()
        try:
            return await body
        except SoftLimitCancelled as exc:
            # A task that raises it is cancelled; the thread has to see what it is.
            error = SoftTimeLimitExceeded(self.clock.limits.soft)
            raise error.with_traceback(exc.__traceback__) from None

    def come_back(self) -> None:
        """In the body's thread again, which has waited for what :meth:`watch` gave.

        Raises what has become due on the way.
        """
        if not self._in_thread:
            return
        with self._lock:
            self._thread = threading.get_ident()
            due, self.due = self.due, None
            self._coroutine = self.task = self._told = None
            self.owed = 0
            if self.clock.state is not BodyState.RUNNING:
                raise StopThread
            if due is Action.SOFT_LIMIT:
                raise SoftTimeLimitExceeded(self.clock.limits.soft)

    def end(self) -> None:
        """The body has ended, however; harmless when it had before."""
        with self._lock:
            self.clock.end()
            if self._thread is not None and self._raised:
                # One that is on its way must not arrive after the body.
                take_back(self._thread)
        if self.clock.verdict is not Verdict.NONE and not self._told_over:
            self._told_over = True
            self._loop.call_soon_threadsafe(self._on_over)
        if not self._in_thread:
            # Its timer stays: where the job is not over when the hard limit would
            # have been, the parent has to know that the body is.
            while self.task is not None and self.task.cancelling():
                self.task.uncancel()  # what the tracer awaits from here on is not the body
        self._coroutine = self._told = self.due = None

    def outcome(self, exc: BaseException | None) -> BaseException | None:
        """What has become of a body that has ended with *exc*, or returned (None).

        Returns the exception to raise in its place, None to return its value.
        """
        if self.clock.is_detached or self.clock.verdict is Verdict.TERMINATED:
            return BodyStopped(None)
        if self.clock.verdict is Verdict.HARD_LIMIT:
            error = TimeLimitExceeded(self.clock.limits.hard)
            error.add_note(f"When the limit was over, the task's body was here:\n{self._stack}")
            return BodyStopped(error)
        exc = unwrapped(exc)
        if isinstance(exc, Retry) and exc.exc is not None and _is_soft_limit(exc.exc):
            retry: Any = exc  # what RETRY stores, and what the log shows
            retry.exc = self._plain_soft_limit(exc.exc)
            retry.excs = repr(retry.exc)
        if exc is None or not isinstance(exc, (asyncio.CancelledError, BaseExceptionGroup)):
            return exc
        if _is_soft_limit(exc):
            return self._plain_soft_limit(exc)
        if isinstance(exc, asyncio.CancelledError):
            # To the tracer a cancelled body is a failed one. What Celery calls
            # an error is an Exception; asyncio's CancelledError is none.
            return TaskBodyCancelled(f"the task's body was cancelled: {exc!r}")
        return exc

    def _plain_soft_limit(self, exc: BaseException) -> SoftTimeLimitExceeded:
        """Celery's own exception in the place of ours."""
        plain = SoftTimeLimitExceeded(self.clock.limits.soft)
        return plain.with_traceback(exc.__traceback__)

    # Called on the loop's thread.

    def close(self) -> None:
        """The job has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.hook is not None:
            self.hook.cancel()
        if self._reminders is not None:
            self._reminders.forget(self)
        # Tasks that the body has left may keep this, through their contexts.
        self.task = self.hook = self._context = self._coroutine = self._told = None
        self._told_in = self._around = self._guarded = []

    def _on_start(self) -> None:
        if self.clock.state is BodyState.ENDED:
            return  # a body in a thread, that was faster
        if self.clock.limits.hard is not None:
            self._on_started()
        self._arm()

    def terminate(self) -> None:
        """The job is to be ended; without effect when it is too late."""
        with self._lock:
            waiting = self._thread is None and self._coroutine is None
            has_ended = self.clock.state is BodyState.ENDED
            is_new = self.clock.terminate(time.monotonic())
        if has_ended:
            self._on_over()
        if not is_new:
            return
        if waiting:
            # Not started: waiting for a thread, or in what comes before a body.
            assert self.task is not None
            self.task.cancel()
            return
        self._cancel_body()
        self._arm()

    def _arm(self) -> None:
        """Look at the clock again when it next has something to say."""
        if self._timer is not None:
            self._timer.cancel()
        due = self.clock.next_due()
        if due is not None:
            delay = max(due - time.monotonic(), 0.0)
            self._timer = self._loop.call_later(delay, self._on_time)
        elif self.clock.state is BodyState.ENDED and self.clock.limits.hard is not None:
            # A body in a thread, that has ended since we began: the parent's clock runs
            # for it, and no timer of ours will tell.
            self._on_over()

    def _on_time(self) -> None:
        if self.clock.state is BodyState.ENDED:
            self._on_over()
            return
        with self._lock:
            action = self.clock.poll(time.monotonic())
            if action is Action.SOFT_LIMIT:
                self._tell_soft_limit()
            elif action is Action.HARD_LIMIT:
                self._cancel_body()
        limits = self.clock.limits
        if action is Action.SOFT_LIMIT:
            logger.warning("Soft time limit (%ss) exceeded for %s", limits.soft, self.who)
            self._on_limit(True)
        elif action is Action.HARD_LIMIT:
            self._log_hard_limit()
            self._on_limit(False)
        elif action is Action.DETACH:
            self._on_stuck(self.clock.verdict, self._body_stack())
        self._arm()

    def _log_hard_limit(self) -> None:
        logger.error("Hard time limit (%ss) exceeded for %s", self.clock.limits.hard, self.who)

    def _tell_soft_limit(self) -> None:
        if self.hook is not None:
            assert self._context is not None
            self.hook.start(self._loop, self._context)
        elif self._thread is not None:
            self._raise(self._thread, SoftTimeLimitExceeded)
            wake_loops(self._thread)
        else:
            self._tell(Action.SOFT_LIMIT)
            self._reminders = remind(self, self._loop)

    def _cancel_body(self) -> None:
        self._stack = self._body_stack()
        if self._thread is not None:
            self._raise(self._thread, StopThread)
            wake_loops(self._thread)
        else:
            self._tell(Action.HARD_LIMIT)
        self._reminders = remind(self, self._loop)
        self._on_cancelled()

    def _tell(self, limit: Action) -> None:
        """Have the body told of *limit* at its await: see :class:`LimitedBody`."""
        self.due = limit
        self._cancel_task()

    def _raise(self, thread: int, exception: type[BaseException]) -> None:
        self._raised = True
        raise_in_thread(thread, exception)

    def _cancel_task(self) -> None:
        if self.task is not None:  # None on the way from a thread to the loop
            if self.due is Action.SOFT_LIMIT:
                self.owed += 1
            self.task.cancel()

    # Called by the body's coroutine, on its way in and out.

    def take_due(self) -> BaseException:
        """What the body is to be told with, now."""
        limit, self.due = self.due, None
        self.give_back()
        self._told_in = swallowing.greenlets(self._coroutine)
        if limit is Action.HARD_LIMIT:
            # A new one: what came may be a scope's of anyio, which would drop it.
            self._told = asyncio.CancelledError()
            return self._told
        self._in_dropping_block = swallowing.drops_cancellations(
            self._coroutine, SoftTimeLimitExceeded
        )
        self._around = swallowing.timeouts(self._coroutine) if GUARDS else []
        # A body that drops all cancellations will hear it under its name only.
        cls = SoftLimitCancelled if self._repeats < 2 else SoftTimeLimitExceeded
        self._told = cls(self.clock.limits.soft)
        return self._told

    @property
    def is_guarding(self) -> bool:
        """Whether :meth:`guard` is to be called after this step."""
        return bool(self._guarded)

    def guard(self) -> None:
        """After a step of a body that was told of its soft limit.

        While that is on its way out (through a task group that waits for its children,
        say), a time-out around it that is over meanwhile would take it for its own, as
        :meth:`give_back` says: let it find a count that is too high. One that the body
        is in, and which the limit does not leave, works as ever.
        """
        self.unguard()
        if self._around and isinstance(self._told, SoftLimitCancelled) and self._is_held():
            inside = swallowing.timeouts(self._coroutine)
            self._guarded = [timeout for timeout in self._around if timeout in inside]
            for timeout in self._guarded:
                timeout._cancelling -= 1

    def unguard(self) -> None:
        """Time-outs work as ever: a cancellation that they have asked for goes in now."""
        for timeout in self._guarded:
            timeout._cancelling += 1
        self._guarded = []

    def give_back(self) -> None:
        """Uncancel the asyncio task, once nobody but the soft limit has cancelled it.

        Earlier, a time-out that has cancelled it in the same turn would take the soft
        limit for its own: ``Timeout.__aexit__`` looks at the count (Python 3.13).
        """
        task = self.task
        while self.owed and task is not None and task.cancelling() <= self.owed:
            task.uncancel()
            self.owed -= 1

    def on_told(self) -> bool:
        """The body goes on to await: it cleans up, has caught the limit, or has lost it.

        Returns whether to tell it once more, right there.
        """
        told, task = self._told, self.task
        if told is None or task is None:
            return False
        limit = Action.HARD_LIMIT if self._is_cancelled else Action.SOFT_LIMIT
        if swallowing.was_dropped_by_wait_for(told) and not self._is_held():
            # Nobody has wanted this. Where the next await is such a one, too, a
            # cancellation by way of the loop could come to the same end, and so on.
            if swallowing.waits_in_wait_for(self._coroutine):
                self.due = limit
                return True
            self._tell(limit)
        elif self.owed and getattr(task, "_must_cancel", False):
            # A task group whose child has failed in the same turn, and which has put
            # its own exception in the place of ours, hands it on (Python 3.13).
            self.due = limit
        else:
            self.give_back()
        return False

    # Called some times within the grace.

    @property
    def _is_cancelled(self) -> bool:
        return self.clock.state is BodyState.CANCELLED

    @property
    def is_late(self) -> bool:
        """Whether the body was told of a limit, and may not have heard it."""
        if self._is_cancelled:
            return True
        return self.clock.state is BodyState.RUNNING and (
            self.due is not None or self._told is not None
        )

    def remind(self, tasks: list[asyncio.Task[Any]]) -> bool:
        """Tell the body, and those of its *tasks* that were cancelled and went on, again.

        Those who deal with it, in an ``except`` or ``finally`` block, are not disturbed.
        Returns whether there may be more to tell.
        """
        with self._lock:
            if not self.is_late:
                return False
            if self._thread is not None:
                if not swallowing.is_held_by_thread(self._thread, StopThread):
                    self._raise(self._thread, StopThread)
                    wake_loops(self._thread)
                return True
            if self.due is None and not self._is_held():
                if not self._is_cancelled and self._has_seen_soft_limit():
                    self._told = None
                    return False
                self._repeats += 1
                self._tell(Action.HARD_LIMIT if self._is_cancelled else Action.SOFT_LIMIT)
            others = [task for task in tasks if task is not self.task]
            cancel_those_who_went_on(self._loop, others)
            return True

    def _is_held(self) -> bool:
        told = self._told
        return told is not None and swallowing.is_held(self._coroutine, told, self._told_in)

    def _has_seen_soft_limit(self) -> bool:
        if self._told is None or not isinstance(self._told, asyncio.CancelledError):
            return True  # told under its name only
        return swallowing.was_seen(self._told, SoftTimeLimitExceeded, self._in_dropping_block)

    def _body_stack(self) -> str:
        """Where the body is now, as a traceback shows it."""
        if self._thread is not None:
            frame = sys._current_frames().get(self._thread)
            return "".join(traceback.format_stack(frame)) if frame is not None else ""
        return "".join(
            "".join(traceback.format_stack(frame, limit=1))
            for frame in _coroutine_frames(self._coroutine)
        )


class LimitedBody:
    """A body's coroutine, at whose awaits limits arrive; the soft one under its own name."""

    __slots__ = ("_control", "_coroutine")

    def __init__(self, coroutine: Any, control: BodyControl) -> None:
        self._coroutine = coroutine
        self._control = control

    def __await__(self) -> Generator[Any, Any, Any]:
        return self

    def __iter__(self) -> LimitedBody:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        """As the coroutine's; but for a limit that what it awaited has swallowed."""
        control = self._control
        if control.due is not None:
            return self._tell()
        if control.owed:
            control.give_back()
        awaited = self._coroutine.send(value)
        if control.is_guarding:
            control.guard()
        return awaited

    def throw(self, *exc_info: Any) -> Any:
        """As the coroutine's, but for a cancellation that means a limit."""
        if self._control.due is not None:
            exc = exc_info[1] if len(exc_info) > 1 and exc_info[1] is not None else exc_info[0]
            if exc is asyncio.CancelledError or isinstance(exc, asyncio.CancelledError):
                return self._tell()
        guards = self._control.is_guarding
        if guards:
            self._control.unguard()
        awaited = self._coroutine.throw(*exc_info)
        if guards:
            self._control.guard()
        return awaited

    def _tell(self) -> Any:
        awaited = self._coroutine.throw(self._control.take_due())
        attempts = ATTEMPTS
        while self._control.on_told() and attempts:
            attempts -= 1
            awaited.cancel()
            awaited = self._coroutine.throw(self._control.take_due())
        self._control.guard()
        return awaited

    def close(self) -> None:
        """As the coroutine's."""
        self._coroutine.close()


def _is_soft_limit(exc: BaseException) -> bool:
    """Whether *exc* is the soft limit, or a group of nothing else."""
    if isinstance(exc, BaseExceptionGroup):
        return all(_is_soft_limit(inner) for inner in exc.exceptions)
    return isinstance(exc, SoftLimitCancelled)


async def _await(awaitable: Any) -> Any:
    return await awaitable


def _coroutine_frames(coroutine: Any) -> list[FrameType]:
    """The frames of a suspended coroutine, from the outermost to its await."""
    frames = []
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None:
            frames.append(frame)
        coroutine = getattr(coroutine, "cr_await", None) or getattr(
            coroutine, "gi_yieldfrom", None
        )
    return frames
