"""Lets faults happen to a worker, and undoes those that last."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import plan
from .plan import Strike

PROC = Path("/proc")

#: Seconds after which a process surely takes jobs. After five that die at their
#: start within a minute the worker gives up, as it should, so not as many are
#: killed before they are as old as that.
GROWN_UP = 5.0
YOUNG_KILLS, YOUNG_KILLS_PERIOD = 2, 60.0


class Faults:
    """Strikes *worker*, which reaches its broker through *proxy*; :meth:`heal` ends all.

    Use it as a context manager. What it does is done in a thread of its own,
    and what the worker is asked for in another, since the answer takes time.
    """

    def __init__(self, worker: Any, proxy: Any) -> None:
        self._worker = worker
        self._proxy = proxy
        self.counts: Counter[str] = Counter()
        #: Processes that were killed, and that were stopped.
        self.killed: set[int] = set()
        self.stopped: set[int] = set()
        #: What was done, and when.
        self.told: list[str] = []
        #: When the broker was cut, in monotonic seconds.
        self.cuts: list[float] = []
        self._cut_count = 0
        self._young_kills: deque[float] = deque(maxlen=YOUNG_KILLS)
        #: What is to be undone, and when.
        self._undo: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._asking = ThreadPoolExecutor(1, thread_name_prefix="control")

    def __enter__(self) -> Faults:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.heal()
        self._asking.shutdown()

    def run(
        self, strikes: list[Strike], end: float, started: float, stop: threading.Event
    ) -> None:
        """Let all *strikes* happen, at their seconds after *started*; stay until the *end*."""
        for strike in strikes:
            self._wait_until(started + strike.at, stop)
            if stop.is_set():
                return
            self.strike(strike)
        self._wait_until(started + end, stop)

    def _wait_until(self, when: float, stop: threading.Event) -> None:
        """Wait, and undo what is due meanwhile."""
        while not stop.is_set() and (now := time.monotonic()) < when:
            self._undo_due(now)
            stop.wait(0.02)

    def heal(self) -> None:
        """Undo at once what still lasts."""
        self._undo_due(float("inf"))

    def strike(self, strike: Strike) -> None:
        """Let it happen now; some of it is undone later."""
        if self._do(strike.fault, strike.arguments):
            self.counts[strike.fault] += 1

    def _do(self, fault: str, arguments: dict[str, Any]) -> bool:
        """Let *fault* happen; False where there was no process for it."""
        if fault in (plan.KILL, plan.STOP):
            pid = self._choose(arguments["which"], fault)
            if pid is None:
                return False
            if fault == plan.KILL:
                self._tell(f"kill -9 {pid}")
                self.killed.add(pid)
                _signal(pid, signal.SIGKILL)
            else:
                self._stop(pid, arguments["seconds"])
        elif fault == plan.RESTART:
            self._tell("pool_restart")
            self._asking.submit(self._control, "pool_restart")
        elif fault == plan.RESIZE:
            self._tell(f"{arguments['slots']} slots")
            self._asking.submit(self.resize, arguments["slots"])
        elif fault == plan.CUT:
            self._cut(arguments["seconds"])
        return True  # else it is a task, which the sender sends

    def resize(self, slots: int) -> bool:
        """Ask for so many *slots*; False when the worker does not answer, as in a cut."""
        stats = self._worker.client.app.control.inspect(
            [self._worker.hostname], timeout=2, limit=1
        )
        reply = (stats.stats() or {}).get(self._worker.hostname)
        if reply is None:
            return False
        more = slots - reply["pool"]["max-concurrency"]
        if more > 0:
            self._control("pool_grow", n=more)
        elif more < 0:
            self._control("pool_shrink", n=-more)
        return True

    def _control(self, command: str, **arguments: Any) -> None:
        self._worker.client.app.control.broadcast(
            command, arguments, destination=[self._worker.hostname]
        )

    # Processes.

    def _stop(self, pid: int, seconds: float) -> None:
        self._tell(f"stop {pid} for {seconds} s")
        self.stopped.add(pid)
        _signal(pid, signal.SIGSTOP)
        self._undo_in(seconds, lambda: _signal(pid, signal.SIGCONT))

    def _choose(self, which: int, fault: str) -> int | None:
        now = time.monotonic()
        pids = pool_processes(self._worker.process.pid)
        kills = self._young_kills
        if len(kills) == YOUNG_KILLS and kills[0] > now - YOUNG_KILLS_PERIOD:
            pids = [pid for pid in pids if fault != plan.KILL or age(pid) > GROWN_UP]
        if not pids:
            return None
        pid = pids[which % len(pids)]
        if fault == plan.KILL and age(pid) <= GROWN_UP:
            kills.append(now)
        return pid

    # The broker.

    def _cut(self, seconds: float) -> None:
        self._tell(f"cut for {seconds} s")
        self.cuts.append(time.monotonic())
        self._proxy.cut()
        self._cut_count += 1
        self._undo_in(seconds, self._heal_cut)

    def _heal_cut(self) -> None:
        self._cut_count -= 1
        if not self._cut_count:
            self._proxy.heal()

    def _tell(self, what: str) -> None:
        self.told.append(f"{time.monotonic():.3f} {what}")

    # Undoing.

    def _undo_in(self, seconds: float, function: Callable[[], None]) -> None:
        heapq.heappush(self._undo, (time.monotonic() + seconds, next(self._order), function))

    def _undo_due(self, now: float) -> None:
        while self._undo and self._undo[0][0] <= now:
            heapq.heappop(self._undo)[2]()


def pool_processes(main: int) -> list[int]:
    """Pids of the worker processes of the worker's *main* process, oldest first."""
    command = (PROC / str(main) / "cmdline").read_bytes()
    pids = []
    for pid in children(main):
        # What dead processes have left is adopted by the main process, too.
        with contextlib.suppress(OSError):
            if (PROC / str(pid) / "cmdline").read_bytes() == command:
                pids.append(pid)
    return sorted(pids, key=lambda pid: (-age(pid), pid))


def children(pid: int) -> list[int]:
    """Pids of the children of process *pid*, dead ones that were not reaped included."""
    found: list[int] = []
    for task in (PROC / str(pid) / "task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            found += map(int, (task / "children").read_text().split())
    return found


def age(pid: int) -> float:
    """Seconds since process *pid* was started; 0 if there is none."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    uptime = float((PROC / "uptime").read_text().split()[0])
    return uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _signal(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)
