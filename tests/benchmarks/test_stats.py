"""Medians, percentiles and spread."""

from benchmarks.stats import percentile, summarise


def test_summary_is_median_and_ends():
    """Five samples: the third, the least and the most."""
    assert summarise([5, 1, 4, 2, 3]) == (3, 1, 5)


def test_percentile_is_a_value_that_was_measured():
    """No interpolation: 99 of 100 values are not above p99."""
    values = list(range(100, 0, -1))

    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile([7.0], 0.99) == 7.0
