"""tests/upstream/outcomes.py: what a run of Celery's tests is worth, and which tests run."""

import json

import pytest

from .outcomes import Selection, compare, merge, read_expected, read_record


def record(*reports):
    """What the plugin writes for these pairs of test and outcome."""
    return [
        json.dumps({"test": test, "outcome": outcome, "seconds": 0.5, "reason": f"why {outcome}"})
        for test, outcome in reports
    ]


def outcomes(*reports):
    return {name: test.outcome for name, test in read_record(record(*reports)).items()}


def test_parts_of_a_test():
    """A test has passed if all its parts have: its call, its fixtures, its subtests."""
    assert outcomes(("a", "chosen"), ("a", "passed")) == {"a": "passed"}
    assert outcomes(("a", "chosen"), ("a", "passed"), ("a", "failed")) == {"a": "failed"}
    assert outcomes(("a", "chosen"), ("a", "failed"), ("a", "passed")) == {"a": "failed"}
    assert outcomes(("a", "chosen"), ("a", "skipped")) == {"a": "skipped"}


def test_run_that_has_died():
    """A test without a report is missing, also one that was to be tried again."""
    reports = [("a", "chosen"), ("b", "chosen"), ("a", "failed"), ("a", "rerun")]

    assert outcomes(*reports) == {"a": "missing", "b": "missing"}


def test_another_try():
    """The last attempt counts, and the others are counted."""
    reports = [("a", "chosen"), ("a", "failed"), ("a", "rerun"), ("a", "rerun"), ("a", "passed")]

    test = read_record(record(*reports))["a"]

    assert (test.outcome, test.reruns, test.seconds) == ("passed", 2, 2.5)


@pytest.mark.parametrize("outcome", ["failed", "skipped", "missing", "xfailed", "xpassed"])
def test_worse(outcome):
    """What is not in the list has to pass: a test that is skipped here is no pass either."""
    tests = read_record(record(("a", "chosen"), ("a", outcome), ("b", "passed")))

    verdict = compare(tests, {})

    assert [test.name for test in verdict.worse] == ["a"]
    assert (verdict.passed, verdict.wanted) == (1, 2)


@pytest.mark.parametrize("outcome", ["failed", "skipped", "xfailed", "xpassed"])
def test_listed(outcome):
    """A test in the list does not count, whatever comes of it."""
    tests = read_record(record(("a", outcome), ("b", "passed")))

    verdict = compare(tests, {"a": "fails with prefork"})

    assert verdict.worse == verdict.better == []
    assert (verdict.passed, verdict.wanted) == (1, 1)


def test_better():
    """A test in the list that passes is named, so that somebody looks at the list."""
    verdict = compare(read_record(record(("a", "passed"))), {"a": "fails with prefork"})

    assert [test.name for test in verdict.better] == ["a"]
    assert (verdict.passed, verdict.wanted) == (0, 0)


def test_another_run():
    """A test that passes in another run has passed, and is named among those tried again."""
    tests = read_record(record(("a", "passed"), ("b", "failed"), ("c", "failed")))
    again = read_record(record(("b", "passed"), ("c", "failed")))

    verdict = compare(merge(tests, again), {})

    assert [test.name for test in verdict.worse] == ["c"]
    assert [(test.name, test.reason) for test in verdict.rerun] == [("b", "why failed")]


def test_list_of_tests_that_do_not_pass():
    """Each has a reason; a parameter may have a # in it."""
    text = "# Remark\n\nt/x.py::test_a[#1]  # fails with prefork\n"

    assert read_expected(text) == {"t/x.py::test_a[#1]": "fails with prefork"}
    with pytest.raises(ValueError, match="without a reason"):
        read_expected("t/x.py::test_b\n")


def test_selection():
    """A name stands for a file, a class, a test, or one with its parameters."""
    selection = Selection.parse("t/x.py  # all of it\n# remark\nt/y.py::A\nt/z.py::test_a[1]\n")

    chosen = ["t/x.py::test_a", "t/y.py::A::test_b[2]", "t/z.py::test_a[1]"]
    others = ["t/y.py::AB::test", "t/z.py::test_a[2]", "t/z.py::test_b"]
    assert [test for test in (*chosen, *others) if test in selection] == chosen
    assert selection.stale(chosen) == []
    assert selection.stale(chosen[:1]) == ["t/y.py::A", "t/z.py::test_a[1]"]
