"""celery_asyncpool/garbage.py: when Python's garbage collector looks."""

import gc

import pytest

from celery_asyncpool.garbage import collect_less_often, restore_thresholds


@pytest.fixture(autouse=True)
def thresholds():
    """Those of the test run come back."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("before", "threshold", "after"),
    [
        ((700, 10, 10), 10_000, (10_000, 10, 10)),
        ((700, 5, 3), 10_000, (10_000, 5, 3)),
        ((50_000, 10, 10), 10_000, (50_000, 10, 10)),
        ((0, 10, 10), 10_000, (0, 10, 10)),
        ((700, 10, 10), 0, (700, 10, 10)),
    ],
    ids=["raised", "others stay", "larger stays", "off stays", "0"],
)
def test_thresholds(before, threshold, after):
    """Only a number that is smaller is changed, and the old ones can be set again."""
    gc.set_threshold(*before)

    kept = collect_less_often(threshold)
    changed = gc.get_threshold()
    restore_thresholds(kept)

    assert changed == after
    assert gc.get_threshold() == before
