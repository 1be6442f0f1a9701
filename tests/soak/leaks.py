"""What must be as it was before: jobs, messages, processes, descriptors, prefetch, slots."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..chaos.ending import descriptors
from .faults import children, pool_processes

PROC = Path("/proc")

#: Seconds without a change after which a worker that has something to do is stuck.
STUCK = 90.0

#: Seconds in which a worker becomes what it was.
PATIENCE = 60.0

#: Connections that the worker may have more than before: clients of Redis open
#: one for each of their threads that happens to use it at the same time, and keep it.
MORE_CONNECTIONS = 20


class Leaks:
    """Measures *worker* when it is made, which is idle then; later tells what is more.

    Arguments:
        worker: a `Worker` of the integration tests.
        slots: how many it has when nobody has changed it.
        count_messages: returns how many messages the broker holds, and how many
            of these are delivered and not acknowledged.
        patience: seconds in which what was is again.
    """

    def __init__(
        self,
        worker: Any,
        slots: int,
        count_messages: Callable[[], tuple[int, int]],
        patience: float = PATIENCE,
    ) -> None:
        self._worker = worker
        self._slots = slots
        self._count_messages = count_messages
        self._patience = patience
        self._prefetch = worker.stats()["prefetch_count"]
        self._processes = len(pool_processes(worker.process.pid))
        self._descriptors = descriptors(worker.process.pid)
        self._threads = _threads(worker.process.pid)

    def wait_idle(self, ended: Callable[[], int]) -> str | None:
        """Wait until nothing is left to do; return what is, if nothing changes any more.

        *ended* counts what has been done so far.
        """
        before: Any = None
        changed = time.monotonic()
        while (left := self._work()) is not None:
            if (now := (left, ended())) != before:
                before, changed = now, time.monotonic()
            if time.monotonic() - changed > STUCK:
                return f"nothing has changed for {STUCK:.0f} s: {left}"
            time.sleep(0.5)
        return None

    def find(self) -> list[str]:
        """Return what is more, or less, than before, once it does not become less any more."""
        deadline = time.monotonic() + self._patience
        while (found := self._find()) and time.monotonic() < deadline:
            time.sleep(1.0)
        return found

    def after_exit(self) -> list[str]:
        """Stop the worker with SIGTERM; return what it leaves behind."""
        worker = self._worker
        worker.process.send_signal(signal.SIGTERM)
        found = []
        try:
            if code := worker.wait_exit(self._patience):
                found.append(f"the worker exited with {code} on SIGTERM")
        except AssertionError:
            found.append(f"the worker did not exit within {self._patience:.0f} s of SIGTERM")
        if family := worker.family():
            found.append(f"processes after the worker's exit: {_names(family)}")
        if any(left := self._count_messages()):
            found.append(f"messages after the worker's exit, and unacknowledged ones: {left}")
        return found

    def _work(self) -> str | None:
        """What there still is to do."""
        inspect = self._worker.client.app.control.inspect([self._worker.hostname], 5, limit=1)
        for question in ("scheduled", "reserved", "active"):
            answer = getattr(inspect, question)()
            if answer is None:
                return f"no answer to inspect {question}"
            if tasks := answer[self._worker.hostname]:
                some = sorted((task.get("request") or task)["id"] for task in tasks)[:5]
                return f"{len(tasks)} {question}: {', '.join(some)}"
        if jobs := self._worker.slots_in_use():
            return f"{jobs} slots in use"
        waiting, unacked = self._count_messages()
        if waiting or unacked:
            return f"{waiting} messages waiting, {unacked} unacknowledged"
        return None

    def _find(self) -> list[str]:
        main = self._worker.process.pid
        stats = self._worker.stats()
        found = []
        if stats["prefetch_count"] != self._prefetch:
            found.append(f"prefetch is {stats['prefetch_count']}, was {self._prefetch}")
        if stats["pool"]["max-concurrency"] != self._slots:
            found.append(f"slots: {stats['pool']['max-concurrency']}, not {self._slots}")
        states = [info["state"] for info in stats["pool"]["worker-processes"].values()]
        if states != ["up"] * self._processes:
            found.append(f"worker processes: {states}, were {self._processes}")
        pids = {main, *pool_processes(main)}
        if more := set(self._worker.family()) - pids:
            found.append(f"subprocesses: {_names(more)}")
        if more := set(children(main)) - pids:
            found.append(f"children, perhaps dead ones: {_names(more)}")
        now = descriptors(main)
        for kind, count in now.items():
            allowed = MORE_CONNECTIONS if kind == "tcp" else 0
            if count > self._descriptors[kind] + allowed:
                found.append(f"descriptors {kind}: {count}, were {self._descriptors[kind]}")
        if (threads := _threads(main)) > self._threads:
            found.append(f"threads: {threads}, were {self._threads}")
        return found


def _threads(pid: int) -> int:
    return len(list((PROC / str(pid) / "task").iterdir()))


def _names(pids: Any) -> str:
    return ", ".join(f"{pid} ({_name(pid)})" for pid in sorted(pids))


def _name(pid: int) -> str:
    try:
        state = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
        command = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return "gone"
    return f"{state} {command[:60].strip()}"
