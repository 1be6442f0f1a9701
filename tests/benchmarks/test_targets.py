"""What was aimed at, and whether it was reached: from the results alone."""

import pytest

from benchmarks.tables import targets_table
from benchmarks.targets import TARGETS, figure, per_task


def rates(**pools):
    return {"samples": {pool: [{"rate": rate}] for pool, rate in pools.items()}}


def latency(p99):
    return [{"loads": {"0.5": {"start": {"p99": p99}}}}]


SESSION = {
    "rows": {
        "noop": {
            "samples": {
                **rates(asyncpool=960.0, ceiling=1000.0, prefork=600.0)["samples"],
                **rates(taskiq=1200.0, **{"ceiling-batches": 3500.0})["samples"],
            }
        },
        "wait-1s-10000": rates(asyncpool=4000.0, gevent=1000.0, taskiq=2000.0),
        "http": rates(asyncpool=140.0, gevent=100.0),
        "mixed": rates(asyncpool=200.0, gevent=100.0),
    },
    "scenarios": {
        "memory": {"asyncpool": [{"memory": {"0": 50_000_000, "10": 1, "10000": 230_000_000}}]},
        "rest": {
            "asyncpool": [{"memory": 80, "idle_cpu": 0.004}],
            "prefork": [{"memory": 100, "idle_cpu": 0.0}],
        },
        "latency": {
            "asyncpool": latency(0.006),
            "prefork": latency(0.004),
            "asyncpool-off": latency(0.012),
        },
    },
}


def test_each_target_is_computed_from_the_medians():
    """One figure each, in the order of the table."""
    figures = [target.measure(SESSION) for target in TARGETS]

    expected = [0.96, 1.6, 4.0, 1.4, 2.0, 18.0, 0.8, 1.5, 0.4, 3.5, 1.6, 0.8, 2.0, 0.5]
    assert figures == pytest.approx(expected)


def test_the_table_says_what_is_met():
    """At least, or at most, as each target has it."""
    met = [line.split(" | ")[-1] for line in targets_table(SESSION).splitlines()[2:]]

    assert met == [
        *("met |", "met |", "met |", "**not met** |", "met |"),
        *("met |", "met |", "**not met** |", "met |"),
        *("met |", "**not met** |", "**not met** |", "met |", "met |"),
    ]


@pytest.mark.parametrize("session", [{"rows": {}, "scenarios": {}}])
def test_what_was_not_measured_has_no_figure(session):
    """Neither a row without our pool, nor a session without rows, is an error."""
    assert {target.measure(session) for target in TARGETS} == {None}
    assert targets_table(session).count("not measured") == len(TARGETS)


def test_an_error_leaves_no_figure():
    """A pool that failed in one round has no median, and no ratio."""
    broken = {
        "rows": {"noop": {"samples": {"asyncpool": [{"rate": 1.0}], "prefork": [{"error": "x"}]}}},
        "scenarios": {
            name: {"asyncpool": [{"error": "x"}], "prefork": [{"error": "x"}]}
            for name in ("memory", "rest", "latency")
        },
    }

    assert {target.measure(broken) for target in TARGETS} == {None}


def test_figure_needs_all_rounds():
    """An unknown value, as on a system without /proc, is no figure."""
    assert figure([{"cpu": 1.0}, {"cpu": 3.0}, {"cpu": 2.0}], "cpu") == 2.0
    assert figure([{"cpu": 1.0}, {"cpu": None}], "cpu") is None
    assert figure([], "cpu") is None


def test_memory_of_a_task_is_of_the_greatest_number():
    """What the worker had at rest is not the tasks'."""
    assert per_task({"0": 1000, "10": 9000, "100": 3000}) == 20.0
    assert per_task({"0": None, "10": None}) is None
