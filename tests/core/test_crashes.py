"""celery_asyncpool/core/crashes.py: which task takes its process down again and again."""

from __future__ import annotations

from celery_asyncpool.core import crashes
from celery_asyncpool.core.crashes import Crashes


def test_counts_each_task():
    """Each crash counts for the tasks that were there."""
    suspects = Crashes(3)

    counts = [suspects.on_crash(task) for task in ("a", "b", "a", "a")]

    assert counts == [1, 1, 2, 3]


def test_quarantine_before_the_last_crash():
    """A task is quarantined once one more crash would be too many."""
    suspects = Crashes(3)

    assert not suspects.is_quarantined("a")
    suspects.on_crash("a")
    assert not suspects.is_quarantined("a")
    suspects.on_crash("a")
    assert suspects.is_quarantined("a")


def test_innocent_task():
    """A task that ends is no suspect any more."""
    suspects = Crashes(2)
    suspects.on_crash("a")

    suspects.on_end("a")

    assert not suspects.is_quarantined("a")
    assert suspects.on_crash("a") == 1
    assert len(suspects) == 1


def test_end_of_unknown_task():
    """Most tasks are no suspects when they end."""
    suspects = Crashes(3)

    suspects.on_end("a")

    assert len(suspects) == 0


def test_no_crash_allowed():
    """With a limit of 1 a redelivered task does not exist, and nobody is quarantined before."""
    suspects = Crashes(1)

    assert not suspects.is_quarantined("a")
    assert suspects.on_crash("a") == suspects.limit


def test_memory_is_bounded(monkeypatch):
    """The oldest suspects are forgotten first."""
    monkeypatch.setattr(crashes, "MOST", 2)
    suspects = Crashes(3)

    for task in ("a", "b", "a", "c"):
        suspects.on_crash(task)

    assert len(suspects) == 2
    assert suspects.on_crash("a") == 3
    assert suspects.on_crash("b") == 1
