"""celery_asyncpool/cpus.py: how many CPUs there are for this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from celery_asyncpool.cpus import usable_cpus


@pytest.fixture(autouse=True)
def affinity_of_eight(monkeypatch):
    """A process that may run on 8 CPUs of 64."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


def write_v1(cgroup: Path, quota: str, period: str = "100000\n") -> None:
    (cgroup / "cpu").mkdir()
    (cgroup / "cpu/cpu.cfs_quota_us").write_text(quota)
    (cgroup / "cpu/cpu.cfs_period_us").write_text(period)


def test_cpus_without_cgroup(tmp_path):
    """Without a quota the affinity mask counts, not the machine's CPUs."""
    assert usable_cpus(tmp_path) == 8


def test_cpus_without_affinity(monkeypatch, tmp_path):
    """Where there are no affinity masks, all CPUs of the machine count."""
    monkeypatch.delattr(os, "sched_getaffinity")

    assert usable_cpus(tmp_path) == 64


def test_cpus_of_unknown_number(monkeypatch, tmp_path):
    """Where nobody can tell there is one CPU."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)

    assert usable_cpus(tmp_path) == 1


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("50000 100000\n", 1),
        ("1000 100000\n", 1),
        ("400000 200000\n", 2),
        ("800000 100000\n", 8),
        ("3200000 100000\n", 8),
    ],
)
def test_cpus_with_quota_of_version_2(tmp_path, quota, cpus):
    """A quota in ``cpu.max`` is rounded up, and never more than the affinity."""
    (tmp_path / "cpu.max").write_text(quota)

    assert usable_cpus(tmp_path) == cpus


@pytest.mark.parametrize(
    ("quota", "cpus"), [("-1\n", 8), ("200000\n", 2), ("150000\n", 2), ("1000\n", 1)]
)
def test_cpus_with_quota_of_version_1(tmp_path, quota, cpus):
    """A quota in ``cpu.cfs_quota_us`` is rounded up; -1 is none."""
    write_v1(tmp_path, quota)

    assert usable_cpus(tmp_path) == cpus


def test_cpus_with_quota_of_both_versions(tmp_path):
    """Where both are mounted, version 2 counts."""
    (tmp_path / "cpu.max").write_text("300000 100000\n")
    write_v1(tmp_path, "100000\n")

    assert usable_cpus(tmp_path) == 3


@pytest.mark.parametrize(
    "text", ["", "\n", "200000\n", "two 100000\n", "0 100000\n", "200000 0\n", "-1 100000\n"]
)
def test_cpus_with_quota_that_cannot_be_read(tmp_path, text):
    """A quota that makes no sense is none."""
    (tmp_path / "cpu.max").write_text(text)

    assert usable_cpus(tmp_path) == 8


def test_cpus_with_half_of_version_1(tmp_path):
    """A quota without a period is none."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("100000\n")

    assert usable_cpus(tmp_path) == 8


def test_cpus_with_unreadable_quota(tmp_path):
    """A quota file that cannot be read is none."""
    (tmp_path / "cpu.max").mkdir()

    assert usable_cpus(tmp_path) == 8


def test_cpus_of_this_machine(monkeypatch):
    """There is at least one CPU here, and no more than the affinity allows."""
    assert 1 <= usable_cpus() <= 8
