"""The file in which tasks say that they have started and ended."""

import os
import time

from benchmarks.ledger import Ledger


def test_two_mappings_see_the_same_task(tmp_path):
    """What a worker writes, the harness reads, with times and pid."""
    harness = Ledger.create(tmp_path / "ledger", 100)
    worker = Ledger(tmp_path / "ledger")
    before = time.monotonic()

    worker.start(42)
    assert worker.end(42) == 42

    assert before <= harness.started[42] <= harness.ended[42] <= time.monotonic()
    assert harness.pids[42] == os.getpid()
    assert (harness.count_started(40, 5), harness.count_ended(40, 5)) == (1, 1)


def test_a_task_that_runs_twice_is_not_counted_as_done(tmp_path):
    """A double is no success: the count never becomes complete."""
    ledger = Ledger.create(tmp_path / "ledger", 2)
    for number in (0, 1, 1):
        ledger.start(number)
        ledger.end(number)

    assert ledger.count_ended(0, 2) == 1
    assert ledger.times_ended(1) == 2


def test_rows_do_not_overlap(tmp_path):
    """The first and last rows of each column are apart."""
    ledger = Ledger.create(tmp_path / "ledger", 8)
    ledger.published[7] = 1.5
    ledger.start(0)
    ledger.start(7)
    ledger.end(7)

    assert ledger.published[7] == 1.5
    assert [ledger.times_started(n) for n in range(8)] == [1, 0, 0, 0, 0, 0, 0, 1]
    assert [ledger.times_ended(n) for n in range(8)] == [0, 0, 0, 0, 0, 0, 0, 1]
    assert not ledger.is_open
    ledger.open_gate()
    assert ledger.is_open
    assert ledger.published[0] == 0.0
