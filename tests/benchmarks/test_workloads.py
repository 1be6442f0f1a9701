"""How many tasks a run has."""

from benchmarks.workloads import TARGET_ROWS, WORKLOADS


def test_tasks_fill_the_time_of_the_pool():
    """A slow pool gets fewer; the rate is what counts."""
    row = WORKLOADS["noop"]

    assert row.tasks_for(2345.0, 4.0) == 9400
    assert row.tasks_for(234.5, 4.0) == 940


def test_tasks_are_never_too_few_or_too_many():
    """Each slot is used, and the queue has an end."""
    row = WORKLOADS["http"]

    assert row.tasks_for(1.0, 4.0) == 500
    assert row.tasks_for(1e6, 4.0) == row.most


def test_ten_thousand_in_flight_are_ten_thousand_tasks():
    """The row's name is its number of tasks, for fast and for slow pools."""
    row = WORKLOADS["wait-1s-10000"]

    assert row.in_flight == row.tasks_for(1.0, 4.0) == row.tasks_for(1e6, 4.0) == 10_000


def test_quick_rows_are_small():
    """A few hundred tasks in every row."""
    for row in WORKLOADS.values():
        small = row.in_small()
        assert small.trial + small.tasks_for(1e6, 4.0) <= 1000


def test_rows_of_targets_exist():
    """Also without --only."""
    assert set(TARGET_ROWS) < set(WORKLOADS)
