"""Who runs what, in which order, and what becomes of errors: without workers."""

import contextlib
import json

import pytest

from benchmarks import options, report, results, session
from benchmarks.harness import Servers
from benchmarks.pools import POOLS
from benchmarks.processes import BenchmarkError
from benchmarks.session import Session, Step, why_not
from benchmarks.workloads import WORKLOADS


@pytest.fixture
def new_session(tmp_path):
    def make(*argv):
        return Session(options.parse([*argv, "--output", str(tmp_path / "results.json")]))

    return make


@pytest.fixture
def no_servers(monkeypatch):
    """Sessions start nothing."""

    @contextlib.contextmanager
    def started(broker, bodies):
        yield Servers("", "")

    monkeypatch.setattr(session.servers, "started", started)
    monkeypatch.setattr(session, "_server_versions", lambda running: {})


def sample(rate):
    return {
        "rate": rate,
        "tasks": 100,
        "seconds": 1.0,
        "cpu_per_1000": 0.5,
        "startup": 0.3,
        "memory": 2**26,
    }


def test_pools_take_turns_within_a_round(new_session):
    """No pool has all its runs at one time of the day."""
    steps = new_session(
        "--only", "noop", "http", "--pools", "asyncpool", "gevent", "--rounds", "2"
    )

    assert list(steps.steps()) == [
        Step(number, row, pool)
        for number in (1, 2)
        for row in ("noop", "http")
        for pool in ("asyncpool", "gevent")
    ]


def test_scenarios_have_fewer_rounds(new_session):
    """They take long: three of five rounds, unless one says otherwise."""
    steps = list(new_session("--only", "noop", "rest", "--pools", "asyncpool").steps())

    assert [step.name for step in steps].count("noop") == 5
    assert [step.name for step in steps].count("rest") == 3


def test_the_estimate_learns_from_what_was_measured(new_session):
    """A run that was done once takes as long again; others take what is typical."""
    one = new_session("--only", "noop", "--pools", "asyncpool", "prefork", "--rounds", "1")
    steps = list(one.steps())
    typical = one.estimate(steps)

    one._took["noop", "asyncpool"] = 1.0

    assert 0 < one.estimate(steps) - 1.0 < typical


def test_a_pool_that_does_not_fit_a_row_says_why():
    """10,000 processes are not sensible, a ceiling has no bodies, an adapter only Redis."""
    assert why_not("prefork", WORKLOADS["wait-1s-10000"], "redis") == POOLS["prefork"].why
    assert why_not("ceiling", WORKLOADS["http"], "redis") == "runs no bodies"
    assert "Redis only" in why_not("arq", WORKLOADS["noop"], "rabbitmq")
    assert why_not("taskiq", WORKLOADS["noop"], "redis") is None
    assert "few rows" in why_not("taskiq", WORKLOADS["payload"], "redis")
    assert why_not("taskiq", WORKLOADS["payload"], "redis", peers_everywhere=True) is None


def test_recovery_needs_processes(new_session):
    """A pool that lives in one process cannot be killed in part."""
    data = new_session("--only", "recovery", "rest").data

    assert list(data["scenarios"]["recovery"]) == ["asyncpool", "prefork"]
    assert list(data["scenarios"]["rest"]) == ["asyncpool", "prefork", "gevent", "threads"]


def test_what_goes_wrong_stays_in_its_row(new_session, no_servers, monkeypatch, capsys):
    """A crash, or a bug of the benchmark's own, is named, and the others have their figures."""

    def throughput(spec, row, servers, seconds, tasks):
        if spec is POOLS["gevent"]:
            raise BenchmarkError("the worker ended early with exit code 1; the end of its log:\n")
        if spec is POOLS["threads"]:
            raise OSError("no room")
        return sample(1000.0)

    monkeypatch.setattr(session, "throughput", throughput)
    one = new_session(
        "--only", "noop", "--rounds", "2", "--pools", "gevent", "threads", "asyncpool"
    )

    one.run()

    assert one.has_errors
    saved = json.loads(one.path.read_text())
    assert saved["is_complete"]
    assert [s["rate"] for s in saved["rows"]["noop"]["samples"]["asyncpool"]] == [1000.0] * 2
    text = report.render("{numbers}{losses}", saved)
    assert "- `noop`, gevent: the worker ended early with exit code 1\n" in text
    assert "- `noop`, threads: OSError: no room\n" in text
    assert text.count("error (2 of 2)") >= 2
    assert "1,000 (1,000 to 1,000)" in text


def test_the_first_round_says_how_many_tasks_the_others_have(new_session, no_servers, monkeypatch):
    """All rounds of a pool are alike."""
    asked = []

    def throughput(spec, row, servers, seconds, tasks):
        asked.append(tasks)
        return sample(10.0)

    monkeypatch.setattr(session, "throughput", throughput)

    new_session("--only", "noop", "--rounds", "3", "--pools", "asyncpool").run()

    assert asked == [None, 100, 100]


def test_a_pool_that_fails_twice_is_not_asked_again(new_session, no_servers, monkeypatch):
    """A stalled worker takes minutes, and there will be no figure."""
    asked = []

    def throughput(spec, row, servers, seconds, tasks):
        asked.append(tasks)
        raise BenchmarkError("the worker stalls")

    monkeypatch.setattr(session, "throughput", throughput)

    new_session("--only", "noop", "--rounds", "5", "--pools", "asyncpool").run()

    assert len(asked) == 2


def test_no_round_begins_that_has_no_time(new_session, no_servers, monkeypatch):
    """With --minutes there are fewer rounds, each of them whole."""
    monkeypatch.setattr(session, "throughput", lambda *args: sample(10.0))
    monkeypatch.setattr(Session, "estimate", lambda self, steps: 50.0 * len(steps))
    argv = ("--only", "noop", "--pools", "asyncpool", "prefork", "--rounds", "3", "--minutes")
    short, long = new_session(*argv, "1"), new_session(*argv, "2")

    short.run()
    long.run()

    assert (short.data["rounds"], long.data["rounds"]) == (1, 3)
    runs = short.data["rows"]["noop"]["samples"]
    assert {pool: len(samples) for pool, samples in runs.items()} == {"asyncpool": 1, "prefork": 1}


def test_results_are_written_after_each_run(new_session, no_servers, monkeypatch):
    """Who ends a session early keeps what was measured."""

    def throughput(spec, row, servers, seconds, tasks):
        if spec is POOLS["prefork"]:
            raise KeyboardInterrupt
        return sample(10.0)

    monkeypatch.setattr(session, "throughput", throughput)
    one = new_session("--only", "noop", "--pools", "asyncpool", "prefork")

    with pytest.raises(KeyboardInterrupt):
        one.run()

    saved = json.loads(one.path.read_text())
    assert not saved["is_complete"]
    assert len(saved["rows"]["noop"]["samples"]["asyncpool"]) == 1
    assert "ended early" in report.render("{numbers}", saved)


def test_a_library_that_cannot_be_installed_is_left_out(new_session, no_servers, monkeypatch):
    """Without network the pools of Celery are measured all the same."""

    def environment(name):
        raise OSError("no network")

    monkeypatch.setattr(session.peers, "environment", environment)
    monkeypatch.setattr(session, "throughput", lambda *args: sample(10.0))
    one = new_session("--only", "noop", "--pools", "asyncpool", "taskiq", "--rounds", "1")

    one.run()

    row = one.data["rows"]["noop"]
    assert list(row["samples"]) == ["asyncpool"]
    assert row["omitted"] == {"taskiq": "could not be installed (no network)"}
    assert not one.has_errors


def test_a_password_of_the_broker_is_not_saved(new_session):
    """Results are published."""
    one = new_session("--only", "noop", "--broker", "amqp://me:secret@host:5672//")

    assert one.data["broker"] == "amqp://host:5672//"


def test_no_results_are_overwritten(tmp_path, monkeypatch):
    """Two sessions of one day are two files; the second is the newest, quick ones are not."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    first = results.new_path()
    results.save({"number": 1}, first)
    results.save({"number": 2}, results.new_path())
    results.save({"number": 3}, results.new_path(is_quick=True))

    assert results.load(first) == {"number": 1}
    assert results.newest(tmp_path) == {"number": 2}
