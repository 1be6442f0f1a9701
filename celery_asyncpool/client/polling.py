"""Results of backends that tell nothing by themselves: look again and again.

Each task is looked at at once, then at growing intervals. One thread looks for
all, and takes no more than a fifth of its time for it, however many wait.
"""

from __future__ import annotations

import heapq
import threading
import time
from typing import Any

from .listeners import IDLE, Heard, Listener, is_final

__all__ = ["PollingListener"]

FIRST_INTERVAL = 0.02
GROWTH = 1.5
LONGEST_INTERVAL = 1.0

#: Seconds of rest for each second of looking.
REST = 4.0


class PollingListener(Listener):
    """Looks into the backend for each task that somebody waits for."""

    def __init__(self, key: Any, app: Any, backend: Any) -> None:
        super().__init__(key, app, backend)
        self._woken = threading.Event()
        #: When to look at which task, and the interval after that.
        self._due: list[tuple[float, str, float]] = []
        self._scheduled: set[str] = set()

    def wake(self) -> None:
        self._woken.set()

    def run(self) -> None:
        idle_since = time.monotonic()
        while True:
            self._woken.clear()
            self._schedule_new()
            began = time.monotonic()
            self._look_at_due(began)
            now = time.monotonic()
            if self._due:
                idle_since = now
            elif now - idle_since >= IDLE or self.stopping:
                if self.may_end():
                    return
                idle_since = now
            if not self.stopping:
                self._rest(now, (now - began) * REST)

    def _schedule_new(self) -> None:
        now = time.monotonic()
        for task_id in self.take_changes()[0]:
            if task_id not in self._scheduled:
                self._scheduled.add(task_id)
                heapq.heappush(self._due, (now, task_id, FIRST_INTERVAL))

    def _look_at_due(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            _, task_id, interval = heapq.heappop(self._due)
            if not self.is_waited_for(task_id):
                self._scheduled.discard(task_id)
                continue
            heard = self._look_at(task_id)
            if heard is None:
                longer = min(interval * GROWTH, LONGEST_INTERVAL)
                heapq.heappush(self._due, (time.monotonic() + interval, task_id, longer))
            else:
                self._scheduled.discard(task_id)
                self.deliver({task_id: heard})

    def _look_at(self, task_id: str) -> Heard | None:
        try:
            meta: dict[str, Any] = self.backend().get_task_meta(task_id)
        except Exception as exc:
            return exc  # for who waits, as result.get() would raise it
        return meta if is_final(meta) else None

    def _rest(self, now: float, least: float) -> None:
        if least > 0.001:
            time.sleep(min(least, LONGEST_INTERVAL))
        self._woken.wait(max(0.0, self._due[0][0] - now) if self._due else IDLE)
