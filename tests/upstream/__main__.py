"""Celery's own integration tests with this pool: python -m tests.upstream --broker redis

Takes the tests of the installed Celery from the package index, runs them on
servers of its own, and compares with what Celery's prefork pool passes in the
same set-up: expected/BROKER.txt lists what it does not pass, with reasons. Exits
with 1 if a test did not pass that passes with prefork.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import celery

from ..servers import RabbitMQServer
from .outcomes import Selection, Test, Verdict, compare, merge, read_expected, read_record
from .sessions import COMPLETE, POOLS, REPOSITORY, Session, Setup, run_all
from .source import fetch

HERE = Path(__file__).parent

#: Imports what only Azure's clients have, and has no test that runs without Azure.
IGNORED = "t/integration/test_backend.py"


def main() -> int:
    arguments = _parse()
    # So that all that was started ends, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="celery-tests-"))
    selection = None
    if arguments.selection is not None:
        selection = HERE / "selections" / f"{arguments.selection}.txt"
    sessions = _run(arguments, selection, arguments.jobs, folder)
    tests = _read(sessions)
    expected = read_expected((HERE / "expected" / f"{arguments.broker}.txt").read_text())
    verdict = compare(tests, expected)
    broken = [session for session in sessions if session.code not in COMPLETE]
    if verdict.worse and not broken:
        again = _run_again(arguments, verdict.worse, folder / "again")
        verdict = compare(merge(tests, again), expected)
    who = f"Celery {celery.__version__}, {arguments.broker}, {arguments.pool}"
    print(f"{who}: {_score(verdict)}, {time.monotonic() - began:.0f} s")
    print("\n".join(_details(verdict, broken)))
    if verdict.worse or broken or not tests:
        print(f"records and logs are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.upstream", description=__doc__)
    parser.add_argument("--broker", choices=("redis", "rabbitmq"), default="redis")
    parser.add_argument("--pool", choices=POOLS, default="asyncpool")
    parser.add_argument("--selection", help="NAME of selections/NAME.txt; default: all tests")
    parser.add_argument("--jobs", type=int, default=2, help="files of tests at once")
    parser.add_argument("--minutes", type=float, default=60.0, help="for the whole run")
    parser.add_argument(
        "--sources", type=Path, default=REPOSITORY / "build", help="folder of Celery's tests"
    )
    parser.add_argument("pytest", nargs="*", help="more arguments, for pytest, after --")
    return parser.parse_args()


def _run(
    arguments: argparse.Namespace, selection: Path | None, jobs: int, folder: Path
) -> list[Session]:
    """Run the tests that *selection* names, else all; return the sessions, which have ended."""
    source = fetch(celery.__version__, arguments.sources)
    sessions = []
    with contextlib.ExitStack() as stack:
        rabbitmq = None
        if arguments.broker == "rabbitmq":
            rabbitmq = stack.enter_context(RabbitMQServer())
        setup = Setup(source, arguments.pool, folder, selection, arguments.pytest, rabbitmq)
        files = _files(source, selection)
        for session in run_all(setup, files, jobs, arguments.minutes * 60):
            sessions.append(session)
            print(_session_line(session), flush=True)
    return sessions


def _run_again(arguments: argparse.Namespace, tests: list[Test], folder: Path) -> dict[str, Test]:
    """Run *tests* once more, with nothing beside them: many wait for a second, and no longer."""
    folder.mkdir()
    selection = folder / "selection.txt"
    selection.write_text("".join(f"{test.name}\n" for test in tests))
    print(f"once more, alone: {len(tests)} tests", flush=True)
    return _read(_run(arguments, selection, 1, folder))


def _read(sessions: list[Session]) -> dict[str, Test]:
    tests: dict[str, Test] = {}
    for session in sessions:
        tests.update(read_record(session.record.read_text().splitlines()))
    return tests


def _files(source: Path, selection: Path | None) -> list[str]:
    """The files of tests to run; the largest, which take longest, first."""
    paths = sorted(source.glob("t/integration/test_*.py"), key=lambda p: -p.stat().st_size)
    files = [str(path.relative_to(source)) for path in paths]
    files = [file for file in files if file != IGNORED]
    if selection is None:
        return files
    names = Selection.parse(selection.read_text()).names
    chosen = {name.partition("::")[0] for name in names}
    if stale := chosen.difference(files):
        raise SystemExit(f"{selection} names what Celery's tests lack: {', '.join(stale)}")
    return [file for file in files if file in chosen]


def _session_line(session: Session) -> str:
    tests = read_record(session.record.read_text().splitlines()).values()
    counts = _counts(compare({test.name: test for test in tests}, {}))
    return f"  {session.file}: {counts or 'no test'}, {time.monotonic() - session.began:.0f} s"


def _score(verdict: Verdict) -> str:
    score = f"{verdict.passed} of the {verdict.wanted} tests that prefork passes"
    return f"{score} ({_counts(verdict)})"


def _counts(verdict: Verdict) -> str:
    return ", ".join(f"{n} {outcome}" for outcome, n in sorted(verdict.counts.items()))


def _details(verdict: Verdict, broken: list[Session]) -> list[str]:
    lines = []
    for session in broken:
        how = "took too long" if session.code is None else f"exit code {session.code} of pytest"
        lines.append(f"{session.file} did not come to its end: {how}; see {session.log}")
    lines += _section("worse than prefork", verdict.worse)
    lines += _section("passed, though the list of prefork says otherwise", verdict.better)
    lines += _section("passed after another try", verdict.rerun)
    return lines


def _section(title: str, tests: list[Test]) -> list[str]:
    rows = [f"  {test.outcome:8} {test.name}  {test.reason}" for test in tests]
    return [f"{title}:", *rows] if rows else []


if __name__ == "__main__":
    sys.exit(main())
