"""A pytest plugin for Celery's tests: chooses their pool, selects, records the outcomes.

The tests' own files stay as they are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .outcomes import Selection


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("upstream", "Celery's own tests")
    group.addoption("--upstream-pool", required=True, help="the pool of the session's worker")
    group.addoption("--upstream-record", required=True, help="file of the outcomes")
    group.addoption("--upstream-selection", help="file that names the tests to run")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(Path(config.getoption("upstream_record"))))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any, request: pytest.FixtureRequest) -> Any:
    """Celery's conftest has a fixture for the pool; a plugin's fixture cannot override it."""
    if fixturedef.argname == "celery_worker_pool":
        pool = request.config.getoption("upstream_pool")
        fixturedef.func = lambda: pool
    return (yield)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    path = config.getoption("upstream_selection")
    if path is None:
        return
    # Of the files in this session: there may be one for each file.
    files = {item.nodeid.partition("::")[0] for item in items}
    selection = Selection.parse(Path(path).read_text()).within(files)
    if stale := selection.stale([item.nodeid for item in items]):
        raise pytest.UsageError(f"{path} names what Celery's tests lack: {', '.join(stale)}")
    config.hook.pytest_deselected(items=[i for i in items if i.nodeid not in selection])
    items[:] = [item for item in items if item.nodeid in selection]


class Recorder:
    """Writes a line for each report at once, so that a run that dies has told the rest."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            self._write(item.nodeid, "chosen")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome != "passed":
            self._write(report.nodeid, report.outcome, reason=_reason(report))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome: str = report.outcome  # or "rerun", of pytest-rerunfailures
        if hasattr(report, "wasxfail"):
            outcome = "xfailed" if outcome == "skipped" else "xpassed"
        if report.when == "call" or outcome != "passed":
            self._write(report.nodeid, outcome, report.duration, _reason(report))

    def _write(self, test: str, outcome: str, seconds: float = 0.0, reason: str = "") -> None:
        line = {"test": test, "outcome": outcome, "seconds": round(seconds, 3), "reason": reason}
        with self._path.open("a") as file:
            file.write(f"{json.dumps(line)}\n")


def _reason(report: Any) -> str:
    """The first line of why it did not pass; empty if it did."""
    if getattr(report, "wasxfail", ""):
        return str(report.wasxfail)
    if isinstance(report.longrepr, tuple):  # of a skip: file, line, reason
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr or "")
    return (text.strip().splitlines() or [""])[0]
