"""The thread that sees a blocked loop.

It looks at what the main thread is doing. While that is inside the loop's own
poll there is nothing to see, and an idle loop is never woken for this. When it
is elsewhere, the loop is asked to run a callback; a loop that does not in time
is blocked: one warning with the task and the stack, and one line when it is
free again.

A call into C that holds the GIL stops this thread too. It then tells
afterwards, without a stack; the stack is had by the parent's SIGUSR1, which
the interpreter answers from a signal handler in C (``faulthandler``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from celery.utils.log import get_logger

__all__ = ["Watchdog"]

logger = get_logger(__name__)


class Watchdog:
    """Watches the loop of the thread that creates this.

    Arguments:
        loop: the loop.
        patience: seconds of blocking that are worth a warning.
        is_busy: whether any job is running; else there is nothing to watch.
        who: names the job that the loop is running: its id and a text.
        report_fd: descriptor on which the parent is told who blocks.
        idle_file: code of this file's is what the main thread runs in a poll.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        patience: float,
        *,
        is_busy: Callable[[], bool],
        who: Callable[[], tuple[int, str]],
        report_fd: int,
        idle_file: str,
    ) -> None:
        self.patience = patience
        #: How often, and for how many seconds in all, the loop was blocked.
        self.blocks = 0
        self.blocked_seconds = 0.0
        self._loop = loop
        self._is_busy = is_busy
        self._who = who
        self._report_fd = report_fd
        self._idle_file = idle_file
        self._main = threading.get_ident()
        self._main_id = threading.get_native_id()
        self._work = threading.Event()
        self._turned = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="asyncpool-watchdog", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread at its next look."""
        self._stopping = True
        self._work.set()

    def wake(self) -> None:
        """A job starts: there is something to watch."""
        if not self._work.is_set():
            self._work.set()

    def counters(self) -> dict[str, float]:
        """What ``inspect stats`` shows."""
        return {"blocks": self.blocks, "blocked_seconds": round(self.blocked_seconds, 3)}

    def _run(self) -> None:
        while not self._stopping:
            self._work.wait()
            if not self._is_busy():
                self._work.clear()
                if not self._is_busy():  # one may have started before the clear
                    continue
                self._work.set()
            self._look()

    def _look(self) -> None:
        """Wait a little; if the main thread is not in a poll, see if the loop turns."""
        before = time.monotonic() - self._starved()
        threading.Event().wait(self.patience / 2)
        held = time.monotonic() - self._starved() - before - self.patience / 2
        if held > self.patience:
            self._tell_afterwards(held)
        elif not self._is_polling(sys._current_frames().get(self._main)):
            self._watch_turn()

    def _starved(self) -> float:
        """Seconds that this thread, and the main one, have waited for a CPU: nobody's call."""
        return _waited_for_cpu(self._main_id) + _waited_for_cpu(threading.get_native_id())

    def _watch_turn(self) -> None:
        asked = time.monotonic()
        self._turned.clear()
        try:
            self._loop.call_soon_threadsafe(self._turned.set)
        except RuntimeError:
            return  # the loop is closed: the process ends
        if self._turned.wait(self.patience):
            return
        job_id, text = self._who()
        frame = sys._current_frames().get(self._main)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        if self._turned.is_set():
            return
        self._report(f"blocked by job {job_id}\n")
        logger.warning(
            "the event loop is blocked for %.1fs by %s; all tasks of this process wait. "
            "It is here:\n%s",
            time.monotonic() - asked,
            text,
            stack,
        )
        self._turned.wait()
        self._report("free\n")
        self._count(time.monotonic() - asked, text)

    def _report(self, line: str) -> None:
        """Tell the parent, if it listens: the pipe is as full as it wants it to be."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._report_fd, line.encode())

    def _tell_afterwards(self, seconds: float) -> None:
        self._count(seconds, "a call that held the interpreter's lock")

    def _count(self, seconds: float, text: str) -> None:
        self.blocks += 1
        self.blocked_seconds += seconds
        logger.warning("the event loop is free again after %.1fs, blocked by %s", seconds, text)

    def _is_polling(self, frame: FrameType | None) -> bool:
        """Whether the main thread waits in the loop's poll."""
        if frame is None:
            return True
        file = frame.f_code.co_filename
        # uvloop polls in C, right under our own call; asyncio in `selectors`.
        return file == self._idle_file or file.endswith("selectors.py")


def _waited_for_cpu(thread_id: int) -> float:
    """Seconds that a thread of this process could have run and did not; 0 where none tells."""
    try:
        _, waited, _ = Path(f"/proc/self/task/{thread_id}/schedstat").read_text().split()
    except (OSError, ValueError):
        return 0.0
    return int(waited) / 1e9
