"""What a soak makes of the worker's log where it speaks of processes that died."""

from datetime import datetime

import pytest

from .check import Sent
from .deaths import read_deaths, unexpected
from .history import read_history
from .kinds import BLOCK_ON, KINDS, REFUSE

TIME = "2026-11-21 10:48:43,348"
#: The log's time is 100 on the clock of the record.
EPOCH = datetime(2026, 11, 21, 10, 48, 43, 348000).timestamp() - 100.0

DIED = (
    f"[{TIME}: ERROR/MainProcess] worker process 7 is gone: signal 9 (SIGKILL); "
    "3 jobs were in flight"
)
BLOCKED = (
    f"[{TIME}: ERROR/MainProcess] killing worker process 7, with 2 other tasks: it did not end "
    "task nap[t], whose time is over: its loop is blocked"
)
STUCK = (
    f"[{TIME}: ERROR/MainProcess] killing worker process 7, with 0 other tasks: "
    "its task does not end"
)
LATE = (
    f"[{TIME}: ERROR/MainProcess] worker process 7 did not start within 20.0s "
    "(worker_proc_alive_timeout); killing it\n"
    f"[{TIME}: ERROR/MainProcess] worker process 7 did not start: signal 9 (SIGKILL); "
    "0 jobs were in flight"
)


def found(log, *, struck=(), stopped=(), kind=KINDS["awaits"], at=99.0):
    """What is unexpected in *log*; a task of *kind* started in process 7 *at* that time."""
    lines = [
        {"what": "publishing", "id": "t", "message": "m", "retries": 0},
        {"what": "received", "id": "t", "message": "m", "delivery": 1, "channel": 1},
        {"what": "started", "delivery": 1, "pid": 7},
    ]
    history = read_history({"at": at, **line} for line in lines)
    sent = {"t": Sent(kind, 5, {})}
    return list(unexpected(read_deaths(log), struck, stopped, sent, history, EPOCH))


@pytest.mark.parametrize("log", [DIED, BLOCKED, STUCK, LATE])
def test_unexpected_death(log):
    """Nothing had happened to the process."""
    assert read_deaths(log).pids == {7}
    assert len(found(log)) == 1


def test_expected_death():
    """It was killed, blocked, stopped, silent, or had a task that refused to end."""
    assert found(DIED, struck={7}) == []
    assert found(BLOCKED, kind=BLOCK_ON) == []
    assert found(BLOCKED, stopped={7}) == []
    assert found(BLOCKED, at=90.0) == []
    assert found(STUCK, kind=REFUSE) == []
    assert found(LATE, stopped={7}) == []
