"""Tables in Markdown, and what counts as a figure."""

from benchmarks.report import render
from benchmarks.tables import cell, losses, markdown, medians


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
    rows = {"noop": row(asyncpool=[100], prefork=[150], ceiling=[900], gevent=[50])}

    assert losses(rows) == ["`noop`: prefork is 1.50 times as fast"]


def test_report_without_results_has_no_figures():
    """The method can be read before anything was measured."""
    assert render("{numbers}|{losses}", None) == (
        "Not measured yet: run `make bench`.\n|Not measured yet."
    )
