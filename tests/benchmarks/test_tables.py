"""Tables in Markdown, and what counts as a figure."""

from benchmarks.report import render
from benchmarks.tables import (
    cell,
    latency_table,
    losses,
    markdown,
    medians,
    memory_table,
    recovery_table,
    rest_table,
)


def row(**samples):
    return {
        "samples": {pool: [{"rate": rate} for rate in rates] for pool, rates in samples.items()}
    }


def test_markdown_aligns_figures_to_the_right():
    """A head, a rule and a line for each row."""
    assert markdown(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_cell_shows_median_and_spread():
    """Large figures are whole numbers, small ones have three digits."""
    assert cell([{"rate": 1234.5}, {"rate": 1000}, {"rate": 2000}], "rate") == (
        "1,234 (1,000 to 2,000)"
    )
    assert cell([{"cpu": 0.12345}], "cpu") == "0.123 (0.123 to 0.123)"


def test_one_error_is_enough_to_have_no_figure():
    """A pool that failed in one round shows an error, and takes part in no comparison."""
    runs = [{"rate": 1.0}, {"error": "it crashed"}]

    assert cell(runs, "rate") == "error (1 of 2)"
    assert medians({"gevent": runs}, "rate") == {}


def test_unknown_figures_are_not_zero():
    """A system without /proc has no CPU times."""
    assert cell([{"cpu": None}], "cpu") == "?"


def test_losses_name_faster_pools_but_not_the_ceiling():
    """The report says where another pool has the better median."""
    rows = {"noop": row(asyncpool=[100], prefork=[150], ceiling=[900], gevent=[50], solo=[110])}

    assert losses({"rows": rows, "scenarios": {}}) == [
        "`noop`, tasks/s, times asyncpool's: prefork 1.50, solo 1.10"
    ]


def test_losses_name_what_is_smaller_elsewhere():
    """CPU time, start-up, memory, latency and recovery are the better the smaller they are."""
    loads = {share: {"start": {"p99": 0.002}} for share in ("0.5", "0.9")}
    less = {share: {"start": {"p99": 0.001}} for share in ("0.5", "0.9")}
    scenarios = {
        "rest": {
            "asyncpool": [{"startup": 1.0, "memory": 200, "idle_cpu": 0.01}],
            "gevent": [{"startup": 0.5, "memory": 100, "idle_cpu": 0.02}],
        },
        "latency": {"asyncpool": [{"loads": loads}], "gevent": [{"loads": less}]},
        "memory": {"asyncpool": [{"memory": {"0": 1, "10": 4}}], "gevent": [{"error": "x"}]},
        "recovery": {"asyncpool": [{"seconds": 2.0}], "prefork": [{"seconds": 1.0}]},
    }

    assert losses({"rows": {}, "scenarios": scenarios}) == [
        "start-up, times asyncpool's: gevent 0.50",
        "memory at rest, times asyncpool's: gevent 0.50",
        "p99 to start at 50% load, times asyncpool's: gevent 0.50",
        "p99 to start at 90% load, times asyncpool's: gevent 0.50",
        "recovery, times asyncpool's: prefork 0.50",
    ]


def test_report_without_results_has_no_figures():
    """The method can be read before anything was measured."""
    assert render("{numbers}|{losses}", None) == (
        "Not measured yet: run `make bench`.\n|Not measured yet."
    )


def test_latency_has_a_line_for_each_load():
    """Seconds become milliseconds; a pool with an error has no figures."""
    times = {"p50": 0.001, "p95": 0.002, "p99": 0.003}
    load = {"rate": 200, "start": times, "result": times}

    table = latency_table({"asyncpool": [{"loads": {"0.5": load}}], "solo": [{"error": "x"}]})

    assert "| asyncpool | 50% | 200 (200 to 200) | 1 (1 to 1) | 2 (2 to 2) | 3 (3 to 3) |" in table
    assert "| solo |  | error (1 of 1) |" in table


def test_memory_has_a_column_for_each_count():
    """A pool without so many tasks has an empty cell; an error is one."""
    table = memory_table(
        {
            "asyncpool": [{"memory": {"0": 2**20, "1000": 2**20 + 20_000_000}}],
            "prefork": [{"memory": {"0": 2**22, "10": 2**22}}],
            "gevent": [{"error": "x"}],
        }
    )

    assert "| pool | 0 tasks | 10 tasks | 1000 tasks | kB for each task |" in table
    assert "| asyncpool | 1 (1 to 1) |  | 20.1 (20.1 to 20.1) | 20 (20 to 20) |" in table
    assert "| prefork | 4 (4 to 4) | 4 (4 to 4) |  | 0 (0 to 0) |" in table
    assert "| gevent |  |  |  | error (1 of 1) |" in table


def test_rest_has_start_memory_and_cpu():
    """In seconds, MiB and percent."""
    table = rest_table({"gevent": [{"startup": 0.5, "memory": 2**26, "idle_cpu": 0.002}]})

    assert "| gevent | 0.5 (0.5 to 0.5) | 64 (64 to 64) | 0.2 (0.2 to 0.2) |" in table


def test_recovery_counts_what_was_lost():
    """Seconds and tasks, both with their spread."""
    table = recovery_table({"prefork": [{"seconds": 1.5, "lost": 1}]})

    assert "| prefork | 1.5 (1.5 to 1.5) | 1 (1 to 1) |" in table
