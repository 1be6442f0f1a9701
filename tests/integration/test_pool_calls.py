"""What calls the pool without Celery's tracer gets what prefork gives: values, errors, acks."""

import pytest
from worker import wait_for

VALUES = {
    "len": "3",
    "number": "3",
    "none": "None",
    "text": "''",
    "tuple": "(True, 'x', 1.5)",
    "list": "[1, [2], {'a': 3}]",
    "exception": "Falsy('a value')",
    "kwargs": "{'task': 1, 'function': 2, 'job': 3, 'threads': 4}",
    "on_loop": "8",
    "gives_coroutine": "8",
    "runs_loop": "8",
    "calls_a_task": "3",
    "runs_task": "3",
    "junk limits": "3",
}
ERRORS = {
    "unpicklable": "Unpicklable",
    "unreadable": "no number",
    "generator": "generator",
    "fails": "LookupError('why')",
    "exits": "exitcode 3",
    "soft": "SoftTimeLimitExceeded",
    "hard": "TimeLimitExceeded",
    "soft def": "SoftTimeLimitExceeded",
    "hard def": "TimeLimitExceeded",
    "cannot be sent": "lock",
    "lambda": "lambda",
}


@pytest.fixture(scope="module")
def worker(transport, start_worker):
    with start_worker(transport, "pool_calls", "-c", 4, "--processes", 1) as worker:
        count = len(VALUES) + len(ERRORS) + 1
        wait_for(lambda: len(told(worker, "value") + told(worker, "error")) == count, worker.tail)
        yield worker


def told(worker, what, of=None):
    return [line for line in worker.records(what) if of in (None, line["of"])]


@pytest.mark.parametrize("of", VALUES)
def test_value(worker, of):
    """The callback gets the value itself, once, after the call was accepted."""
    [line] = told(worker, "value", of)

    assert line["value"] == VALUES[of]
    assert [line["what"] for line in worker.records(of=of)] == ["accepted", "value"]


def test_large_value(worker):
    """A value may be large."""
    assert len(told(worker, "value", "bytes")) == 1


@pytest.mark.parametrize("of", ERRORS)
def test_error(worker, of):
    """The error callback gets the exception, once; what cannot be sent is one, too."""
    [line] = told(worker, "error", of)

    assert ERRORS[of] in line["error"]
    assert told(worker, "value", of) == []
    assert len(told(worker, "accepted", of)) == 1


@pytest.mark.parametrize("of", ["soft", "hard", "soft def", "hard def"])
def test_limits(worker, of):
    """A limit that is over is told, once."""
    assert [line["soft"] for line in told(worker, "limit", of)] == [of.startswith("soft")]


def test_nobody_asks(worker):
    """An error that nobody has asked for is logged."""
    worker.wait_log("failed, and nobody has asked to be told")
    assert "LookupError: nobody asks" in worker.log()


def test_tasks_run_beside(worker):
    """All slots are free again."""
    results = [worker.client.send("add", n, n) for n in range(20)]

    assert [result.get() for result in results] == [2 * n for n in range(20)]
    wait_for(lambda: not worker.slots_in_use(), worker.tail)
