"""What has come of Celery's tests, against what comes of them with its prefork pool."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Self

#: Between a test and the reason, in lists of tests.
SEPARATOR = "  # "


@dataclass
class Test:
    """What has come of one test: the worst of the parts of its last attempt."""

    __test__ = False  # for pytest

    name: str
    outcome: str = "missing"
    seconds: float = 0.0
    reruns: int = 0
    reason: str = ""


def read_record(lines: Iterable[str]) -> dict[str, Test]:
    """Read what `plugin.Recorder` wrote: the chosen tests, by name.

    One of which there is no report is "missing": the run died in it or before.
    """
    tests: dict[str, Test] = {}
    for line in lines:
        report = json.loads(line)
        test = tests.setdefault(report["test"], Test(report["test"]))
        outcome = report["outcome"]
        test.seconds += report["seconds"]
        if outcome == "rerun":
            test.reruns += 1
            test.outcome = "missing"
        elif outcome not in ("chosen", "passed"):
            test.outcome, test.reason = outcome, report["reason"]
        elif outcome == "passed" and test.outcome == "missing":
            test.outcome = "passed"
    return tests


def merge(tests: dict[str, Test], again: dict[str, Test]) -> dict[str, Test]:
    """Return *tests* with what came of some of them in another run, *again*.

    Why they had not passed stays; that they ran again is counted.
    """
    merged = dict(tests)
    for name, test in again.items():
        first = tests[name]
        reruns = first.reruns + test.reruns + 1
        merged[name] = replace(test, reruns=reruns, reason=first.reason)
    return merged


@dataclass(frozen=True)
class Selection:
    """Tests by name: whole files, classes, tests, or tests with their parameters."""

    names: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read one name a line; a ``#`` begins a remark, at a line's start or after blanks."""
        lines = (line.partition(SEPARATOR)[0].strip() for line in text.splitlines())
        return cls(tuple(line for line in lines if line and not line.startswith("#")))

    def __contains__(self, test: str) -> bool:
        return any(_is_within(test, name) for name in self.names)

    def within(self, files: set[str]) -> Self:
        """What of it is in *files*."""
        return replace(self, names=tuple(n for n in self.names if n.partition("::")[0] in files))

    def stale(self, tests: list[str]) -> list[str]:
        """The names that stand for none of *tests*."""
        return [n for n in self.names if not any(_is_within(test, n) for test in tests)]


def _is_within(test: str, name: str) -> bool:
    return test == name or test.startswith((f"{name}::", f"{name}["))


def read_expected(text: str) -> dict[str, str]:
    """Read a list of tests that need not pass: the reason of each, by name."""
    expected = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name, separator, reason = line.partition(SEPARATOR)
        if not separator or not reason.strip():
            raise ValueError(f"a test without a reason: {line!r}")
        expected[name] = reason.strip()
    return expected


@dataclass
class Verdict:
    """How a run compares with the list of what prefork does not pass.

    Attributes:
        counts: how many tests have which outcome.
        worse: those that prefork passes, and this run did not.
        better: those that passed though prefork does not pass them.
        rerun: those that passed, but not the first time.
    """

    counts: Counter[str] = field(default_factory=Counter)
    worse: list[Test] = field(default_factory=list)
    better: list[Test] = field(default_factory=list)
    rerun: list[Test] = field(default_factory=list)

    @property
    def passed(self) -> int:
        """How many passed of those that prefork passes."""
        return self.counts["passed"] - len(self.better)

    @property
    def wanted(self) -> int:
        """How many of the tests that were chosen prefork passes."""
        return self.passed + len(self.worse)


def compare(tests: dict[str, Test], expected: dict[str, str]) -> Verdict:
    """Judge *tests*: each one that is not in *expected* has to pass, none may be skipped."""
    verdict = Verdict()
    for test in tests.values():
        verdict.counts[test.outcome] += 1
        if test.outcome != "passed" and test.name not in expected:
            verdict.worse.append(test)
        elif test.outcome == "passed" and test.name in expected:
            verdict.better.append(test)
        if test.outcome == "passed" and test.reruns:
            verdict.rerun.append(test)
    return verdict
