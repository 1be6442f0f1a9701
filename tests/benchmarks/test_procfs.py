"""What is read from /proc."""

import os
import subprocess
import sys

import pytest

from benchmarks import procfs


def test_stat_is_parsed_after_the_name():
    """A process may have any name; its own and its reaped children's ticks are added."""
    text = "7 (a) b (c) S 3 1 1 0 -1 0 0 0 0 0 10 20 3 4 20 0 1 0 99"

    assert procfs.parse_stat(text) == (3, 37)


def test_pss_is_in_kibibytes():
    """One line of many counts."""
    assert procfs.parse_pss("00-ff rollup\nRss: 9 kB\nPss:    3 kB\nPss_Dirty: 1 kB\n") == 3072


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_tree_has_children_and_their_memory():
    """A child counts, and what it shares with its parent counts once."""
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            assert set(procfs.tree(os.getpid())) >= {os.getpid(), child.pid}
            assert procfs.pss_bytes(os.getpid()) > 0
            assert procfs.cpu_seconds(os.getpid()) > 0
        finally:
            child.kill()
