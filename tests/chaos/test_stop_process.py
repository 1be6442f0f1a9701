"""SIGSTOP of one of two processes while jobs pile up: its socket is full."""

import contextlib
import os
import signal
from pathlib import Path

import pytest
from ending import Ending, ending_well
from worker import wait_for

SLOTS = 100
PAYLOAD = "x" * 64 * 1024

#: How often the other process gets as many tasks as there are slots, twice.
ROUNDS = 6

#: Rounds before: what a worker makes once and keeps is no growth.
WARM_UP = 4


@pytest.fixture(scope="module")
def worker(transport, start_worker):
    options = ("-E", "-c", SLOTS, "--processes", 2, "--prefetch-multiplier", 1)
    with ending_well(start_worker(transport, "chaos", *options)) as worker:
        yield worker


@contextlib.contextmanager
def one_stopped(worker, ending):
    """Stop a process that runs six tasks; then fill all slots, and its socket, with big ones.

    Gives its pid, the tasks that it had accepted with early acks and with late
    ones, and all others; these have ended but for those that it was sent.
    """
    gate = ending.gate()
    early, late = ending.send("hold", str(gate), count=6)
    ending.wait_started(*early, *late)
    victim, other = worker.pool_pids()
    ids = {line["id"] for line in worker.records("started", pid=victim)}
    accepted = [[result for result in some if result.id in ids] for some in (early, late)]
    assert [len(some) for some in accepted] == [3, 3]
    others = [result for result in (*early, *late) if result.id not in ids]

    os.kill(victim, signal.SIGSTOP)
    try:
        for some in ending.send("hold", str(gate), PAYLOAD, count=(SLOTS - 12) // 2):
            others += some
        wait_for(lambda: ending.runs(*others) == SLOTS / 2, worker.tail)
        gate.touch()
        stuck = check_only_one_is_held_up(worker, ending, victim, others)
        others += check_other_goes_on(worker, ending, other)
        assert worker.up_processes()[victim]["slots-in-use"] == stuck
        yield victim, *accepted, others
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGCONT)


def check_only_one_is_held_up(worker, ending, victim, others):
    """See that tasks end but for those that the *victim* was sent; return what it has.

    That is less than it has slots for: a process whose socket is full gets no more.
    """

    def stuck():
        return worker.up_processes()[victim]["slots-in-use"]

    def ended():
        return sum(ending.count_records("ended", others).values())

    # Six were accepted before it was stopped.
    wait_for(lambda: ended() == len(others) - (stuck() - 6), worker.tail)
    assert 6 < stuck() < SLOTS / 2
    return stuck()


def check_other_goes_on(worker, ending, other):
    """Run tasks in the *other* process, and see that the worker's memory does not grow."""
    results, sizes = [], []
    for _ in range(WARM_UP + 2 * ROUNDS):
        early, late = ending.send("pid", PAYLOAD, count=SLOTS // 2)
        assert {result.get() for result in (*early, *late)} == {other}
        results += early + late
        sizes.append(resident(worker.process.pid))
    # The least of each half: what has just passed through may not have been freed yet.
    del sizes[:WARM_UP]
    growth = min(sizes[ROUNDS:]) - min(sizes[:ROUNDS])
    assert growth < ROUNDS * SLOTS * len(PAYLOAD) / 2, sizes
    return results


def resident(pid):
    """Bytes of memory that process *pid* uses."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_continued(worker, tmp_path):
    """After SIGCONT all its tasks end well, once."""
    with Ending(worker, tmp_path) as ending:
        with one_stopped(worker, ending) as (victim, early, late, others):
            os.kill(victim, signal.SIGCONT)

        results = early + late + others
        ending.check(ended=results)
        assert ending.runs(*results) == len(results)
        assert victim in worker.pool_pids()


def test_killed(worker, tmp_path):
    """After SIGKILL what it had accepted is lost or redelivered; the rest runs elsewhere."""
    with Ending(worker, tmp_path) as ending:
        with one_stopped(worker, ending) as (victim, early, late, others):
            os.kill(victim, signal.SIGKILL)

        ending.check(ended=late + others, lost=early)
        assert ending.runs(*early, *others) == len(early + others)
        assert ending.runs(*late) == 2 * len(late)
        assert victim not in worker.pool_pids()
