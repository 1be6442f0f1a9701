"""Which worker processes have died, why, and whether they should have."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

from .check import Sent
from .history import History
from .kinds import BLOCK, BLOCK_ON, REFUSE

GONE = re.compile(r"worker process (\d+) (is gone|did not start): (.*); \d+ jobs were in flight")
KILLED = re.compile(
    r"^\[(.{23}).*killing worker process (\d+), with \d+ other tasks: (.*)", re.MULTILINE
)
LATE = re.compile(r"worker process (\d+) (did not start within)")

BLOCKED, REFUSED = "its loop is blocked", "its task does not end"

#: Seconds without a word of any async body after which a loop may well be called
#: blocked: on a busy machine a little work can take that long.
SILENCE = 2.0


class Kill(NamedTuple):
    """Why the pool has killed a process, and when: seconds since the epoch."""

    reason: str
    at: float | None = None


class Deaths(NamedTuple):
    """The worker processes that died before their time, as the worker's log tells.

    Attributes:
        gone: those that died by themselves, and how.
        killed: those that the pool has killed, and why.
    """

    gone: Mapping[int, str]
    killed: Mapping[int, Kill]

    @property
    def pids(self) -> set[int]:
        return {*self.gone, *self.killed}


def read_deaths(log: str) -> Deaths:
    """Return what *log* tells."""
    killed = {int(pid): Kill(reason, _time(at)) for at, pid, reason in KILLED.findall(log)}
    killed |= {int(pid): Kill(what) for pid, what in LATE.findall(log)}
    gone = {int(pid): f"{what}: {how}" for pid, what, how in GONE.findall(log)}
    return Deaths({pid: how for pid, how in gone.items() if pid not in killed}, killed)


def unexpected(
    deaths: Deaths,
    struck: Collection[int],
    stopped: Collection[int],
    sent: Mapping[str, Sent],
    history: History,
    epoch: float,
) -> Iterable[str]:
    """Yield the deaths that no fault explains.

    Arguments:
        struck: pids that were killed by a fault.
        stopped: pids that were stopped for a while. The pool cannot tell such a
            process from one whose loop is blocked.
        sent: the tasks.
        history: which of them ran where.
        epoch: when the clock of the history was 0, in seconds since the epoch.
    """
    blocking = _pids_of(sent, history, {BLOCK.name, BLOCK_ON.name})
    refusing = _pids_of(sent, history, {REFUSE.name})
    for pid, how in deaths.gone.items():
        if pid not in struck:
            yield f"worker process {pid} {how}, and nobody had killed it"
    for pid, (reason, at) in deaths.killed.items():
        if BLOCKED in reason and at is not None:
            expected = pid in blocking or not _has_spoken(pid, at - epoch, sent, history)
        else:
            expected = REFUSED in reason and pid in refusing
        if not expected and pid not in stopped:
            yield f"worker process {pid} was killed without need: {reason}"


def _time(text: str) -> float:
    """Read the time of a line of the log."""
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S,%f").timestamp()


def _has_spoken(pid: int, at: float, sent: Mapping[str, Sent], history: History) -> bool:
    """Whether an async body has started or ended in process *pid* shortly before."""
    for delivery in history.deliveries.values():
        if sent[delivery.message.task].kind.task.startswith("def_"):
            continue  # in a thread, which a blocked loop does not keep
        if any(who == pid for _, who in delivery.starts):
            moments = [when for when, _ in (*delivery.starts, *delivery.ends)]
            if any(at - SILENCE < when < at for when in moments):
                return True
    return False


def _pids_of(sent: Mapping[str, Sent], history: History, kinds: Collection[str]) -> set[int]:
    """The processes in which a task of these *kinds* has started."""
    return {
        pid
        for delivery in history.deliveries.values()
        if sent[delivery.message.task].kind.name in kinds
        for _, pid in delivery.starts
    }
