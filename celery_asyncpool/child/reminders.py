"""A limit that was swallowed is told again, some times within the grace."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from . import swallowing
from .jobcontext import job_of_task

if TYPE_CHECKING:
    from .cancel import BodyControl

__all__ = ["TIMES", "Reminders", "cancel_those_who_went_on", "remind"]

#: In how many turns of the loop a task of a body is told that ``asyncio.wait_for`` keeps
#: from its cancellation each time: one in ten gets through where the loop is busy.
TURNS = 50 if sys.version_info < (3, 12) else 1

#: Looks at a body within its grace. Between two a body that has caught its limit, and
#: cleans up behind the `except`, is left alone.
TIMES = 10

_reminders: dict[asyncio.AbstractEventLoop, Reminders] = {}


def cancel_those_who_went_on(
    loop: asyncio.AbstractEventLoop, tasks: list[asyncio.Task[Any]], turns: int = TURNS
) -> None:
    """Cancel those of *tasks* again that were cancelled, and neither end nor clean up."""
    left = [task for task in tasks if swallowing.went_on(task)]
    for task in left:
        task.cancel()
    if left and turns > 1:
        loop.call_soon(cancel_those_who_went_on, loop, left, turns - 1)


def remind(control: BodyControl, loop: asyncio.AbstractEventLoop) -> Reminders:
    """Look at the body of *control*, which is told of a limit, until its grace is over.

    Its ``remind`` is called then. ``forget`` it, in what this returns, when its job ends.
    """
    reminders = _reminders.get(loop)
    if reminders is None:
        reminders = _reminders[loop] = Reminders(loop, control.clock.grace / TIMES)
    reminders.add(control)
    return reminders


class Reminders:
    """The bodies of one loop that were told of a limit: one look at all of them at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, interval: float) -> None:
        self._loop = loop
        self._interval = interval
        #: How many looks each of them still gets.
        self._looks: dict[BodyControl, int] = {}
        self._timer = loop.call_later(interval, self._look)

    def __repr__(self) -> str:
        return f"<Reminders of {len(self._looks)} bodies>"

    def add(self, control: BodyControl) -> None:
        """Look at *control*, for the first time when at least one interval is over."""
        self._looks[control] = TIMES + 1

    def forget(self, control: BodyControl) -> None:
        """Its job has ended, or it has heard its limit."""
        self._looks.pop(control, None)
        if not self._looks:
            self._timer.cancel()
            if _reminders.get(self._loop) is self:
                del _reminders[self._loop]  # a later body makes another

    def _look(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._look)
        due = []
        for control, looks in list(self._looks.items()):
            self._looks[control] = looks - 1
            if looks <= TIMES:
                due.append(control)
        tasks = self._tasks() if any(control.is_late for control in due) else {}
        for control in due:
            if not control.remind(tasks.get(control, [])) or not self._looks[control]:
                self.forget(control)

    def _tasks(self) -> dict[BodyControl, list[asyncio.Task[Any]]]:
        """The asyncio tasks of these bodies."""
        found: dict[BodyControl, list[asyncio.Task[Any]]] = {}
        for task in asyncio.all_tasks(self._loop):
            job = job_of_task(task)
            if job is not None and job.control in self._looks:
                found.setdefault(job.control, []).append(task)
        return found
