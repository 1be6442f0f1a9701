"""What happened to each task: a file that client, workers and harness map into memory.

A task writes its own row, without a system call: how often it started and
ended, when, and in which process. So every task is checked, whatever its pool
or library does with results, and times are of one clock (``time.monotonic``,
the same in all processes of a machine). Needs only Python: libraries in other
environments use it too.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

__all__ = ["VARIABLE", "Ledger"]

#: Environment variable with the path of the ledger.
VARIABLE = "BENCHMARK_LEDGER"

#: Bytes of one row: three times, one pid, two counts.
ROW = 3 * 8 + 4 + 2
#: Bytes before the rows; the first says whether holding tasks may end.
HEAD = 8


class Ledger:
    """The rows of tasks 0 to *size* - 1 in the file at *path*."""

    def __init__(self, path: str | Path) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.size = size = (len(self._map) - HEAD) // ROW
        view = memoryview(self._map)
        self._starts = HEAD + size * 28
        self._ends = self._starts + size
        self._view = view
        self.published = view[HEAD : HEAD + size * 8].cast("d")
        self.started = view[HEAD + size * 8 : HEAD + size * 16].cast("d")
        self.ended = view[HEAD + size * 16 : HEAD + size * 24].cast("d")
        self.pids = view[HEAD + size * 24 : HEAD + size * 28].cast("I")

    @classmethod
    def create(cls, path: str | Path, size: int) -> Ledger:
        """Make an empty ledger of *size* rows, rounded up to a multiple of 8."""
        with open(path, "wb") as file:
            file.truncate(HEAD + ROW * (-(-size // 8) * 8))
        return cls(path)

    def start(self, number: int) -> None:
        """Task *number* starts, here and now."""
        self._view[self._starts + number] += 1
        self.pids[number] = os.getpid()
        self.started[number] = time.monotonic()

    def end(self, number: int) -> int:
        """Task *number* ends now; return it, which is the task's result."""
        self.ended[number] = time.monotonic()
        self._view[self._ends + number] += 1
        return number

    def count_started(self, first: int, count: int) -> int:
        """How many of *count* tasks from *first* on have started once."""
        return self._map[self._starts + first : self._starts + first + count].count(1)

    def count_ended(self, first: int, count: int) -> int:
        """How many of *count* tasks from *first* on have ended once."""
        return self._map[self._ends + first : self._ends + first + count].count(1)

    def times_started(self, number: int) -> int:
        """How often task *number* has started."""
        return self._view[self._starts + number]

    def times_ended(self, number: int) -> int:
        """How often task *number* has ended."""
        return self._view[self._ends + number]

    @property
    def is_open(self) -> bool:
        """Whether tasks that hold may end."""
        return bool(self._view[0])

    def open_gate(self) -> None:
        """Let the tasks end that hold."""
        self._view[0] = 1

    def close_gate(self) -> None:
        """Tasks that hold from now on wait for :meth:`open_gate`."""
        self._view[0] = 0
