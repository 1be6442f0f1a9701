"""A task's own `Request` class hears of its task what it would hear from prefork."""

from collections import Counter

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from worker import Events, wait_for

TIMEOUT = 60

#: What is told of each task, and with what it ends.
TOLD = {
    "fine": (["accepted"], None),
    "fails": (["accepted", "failure"], ValueError),
    "retries": (["accepted", "accepted", "failure", "retry"], None),
    "soft": (["accepted", "failure", "soft timeout"], SoftTimeLimitExceeded),
    "hard": (["accepted", "failure", "hard timeout"], TimeLimitExceeded),
    "deaf": (["accepted", "failure", "hard timeout"], TimeLimitExceeded),
}
TIMEOUTS = {"soft": 0.5, "hard": 1, "deaf": 1}


@pytest.fixture
def worker(new_transport, start_worker):
    with start_worker(
        new_transport("redis"), "requests", "-c", 8, "--processes", 1, "-E"
    ) as worker:
        yield worker


def end(result):
    """With what the task has ended, None for a value."""
    try:
        result.get(timeout=TIMEOUT)
    except Exception as exc:
        return exc
    return None


def told(worker, result):
    lines = [line for line in worker.records(id=result.id) if line["what"] != "started"]
    return sorted(line["what"] for line in lines)


def check(worker, names):
    results = {name: worker.client.send(name) for name in names}
    for name, result in results.items():
        what, error = TOLD[name.partition("_")[2]]
        exc = end(result)
        assert isinstance(exc, error or type(None)), name
        wait_for(lambda r=result, w=what: told(worker, r) == w, lambda r=result: told(worker, r))
    for name, result in results.items():
        timeouts = [line["timeout"] for line in worker.records(id=result.id) if "timeout" in line]
        seconds = TIMEOUTS.get(name.partition("_")[2])
        assert timeouts == ([seconds] if seconds else []), name


def test_told_by_prefork(start_worker, new_transport):
    """The promise is prefork's: this is what it does."""
    selection = ("-P", "prefork")
    worker = start_worker(new_transport("redis"), "requests", "-c", 2, selection=selection)
    try:
        worker.start()
        worker.wait_log(" ready.")
        check(worker, [f"def_{kind}" for kind in TOLD])
    finally:
        worker.kill_everything()
        worker.client.close()


def test_told_by_this_pool(worker):
    """Each is told once, of `async def` and of `def` tasks; each has one outcome."""
    names = [f"{flavour}_{kind}" for flavour in ("async", "def") for kind in TOLD]

    with Events(worker.client.app) as events:
        wait_for(lambda: events.seen, "a heartbeat: from now on all events are heard")
        check(worker, names)
        wait_for(lambda: len(events.ends()) == len(names), lambda: events.ends())

    assert Counter(events.ends().values()) == {1: len(names)}


@pytest.mark.parametrize("task", ["async_refuses", "async_blocks"])
def test_hard_limit_of_a_body_that_does_not_end(worker, task):
    """Where the worker's own clock ends it, the timeout and the failure are told once, too."""
    result = worker.client.send(task)

    assert isinstance(end(result), TimeLimitExceeded)
    what = ["accepted", "failure", "hard timeout"]
    wait_for(lambda: told(worker, result) == what, lambda: told(worker, result))
    assert worker.log().count(f"Hard time limit (1s) exceeded for apps.requests.{task}") == 1


def test_revoke(worker):
    """A revoked task is told as one that has failed, as Celery does, and is revoked once."""
    result = worker.client.send("async_waits")
    worker.wait_started(result)

    with Events(worker.client.app) as events:
        wait_for(lambda: events.seen, "a heartbeat: from now on all events are heard")
        result.revoke(terminate=True)
        with pytest.raises(TaskRevokedError):
            result.get(timeout=TIMEOUT)
        wait_for(lambda: told(worker, result) == ["accepted", "failure"], worker.tail)
        wait_for(lambda: events.ends(), worker.tail)

    assert events.ends() == {(result.id, "task-revoked"): 1}
