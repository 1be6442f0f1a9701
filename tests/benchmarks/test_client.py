"""The arrivals of an open loop."""

import pytest

from benchmarks.client import arrivals


def test_arrivals_have_the_rate_and_are_the_same_for_all_pools():
    """A seed gives one sequence, growing, with *rate* a second on average."""
    times = list(arrivals(100.0, 5000, seed=1))

    assert times == list(arrivals(100.0, 5000, seed=1))
    assert times == sorted(times)
    assert times[-1] == pytest.approx(50, rel=0.1)
