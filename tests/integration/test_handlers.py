"""Handlers of tasks and receivers of their signals: where they run, and how they end."""

import dataclasses
import os
import signal
import uuid

import pytest
from celery.exceptions import TaskRevokedError
from worker import wait_for

TIMEOUT = 60

GRACE = 2.0  # the machine may be busy: so long a process may be late

#: Where a handler or receiver is called, and how the task ends then.
AFTER = {
    "on_success": "succeeds",
    "on_failure": "fails",
    "on_retry": "retries",
    "after_return": "succeeds",
    "task_success": "succeeds",
    "task_failure": "fails",
    "task_retry": "retries",
    "task_postrun": "succeeds",
}
BEFORE = {"before_start": "succeeds", "task_prerun": "succeeds"}

STATES = {"succeeds": "SUCCESS", "fails": "FAILURE", "retries": "RETRY"}


@pytest.fixture(scope="module")
def start(redis_transport, start_worker):
    """Start a worker with one process."""

    def start():
        transport = dataclasses.replace(redis_transport, queue=f"test-{uuid.uuid4().hex[:8]}")
        env = {"HANDLERS_CONF": f"asyncpool_cancel_grace={GRACE}"}
        return start_worker(transport, "handlers", "-c", 20, "--processes", 1, env=env)

    return start


@pytest.fixture(scope="module")
def shared(start):
    """The worker of the tests in which nothing happens to its process."""
    with start() as worker:
        yield worker


@pytest.fixture
def worker(shared):
    """A worker whose gate is closed."""
    shared.client.send("open_gate", False).get(timeout=TIMEOUT)
    pids = shared.pool_pids()
    yield shared
    shared.client.send("open_gate").get(timeout=TIMEOUT)
    wait_for(lambda: shared.slots_in_use() == 0, shared.tail)
    assert shared.pool_pids() == pids, shared.tail()


def place(where, flavour):
    return f"{flavour} {where}" if where.startswith("task_") else where


@pytest.mark.parametrize("body", ["async", "def"])
@pytest.mark.parametrize("where", [*BEFORE, *AFTER])
def test_plain_ones_block_nobody(worker, body, where):
    """Where a plain handler or receiver blocks, the loop goes on, and so do all neighbours."""
    outcome = {**BEFORE, **AFTER}[where]
    what = place(where, "plain")
    result = worker.client.send(f"{body}_plain", what, "blocks", outcome)
    wait_for(lambda: worker.count(what, result), worker.tail)

    worker.client.send("open_gate").get(timeout=TIMEOUT)

    wait_for(lambda: worker.count(f"{what} ends", result), worker.tail)
    wait_for(lambda: result.ready(), worker.tail)
    assert result.state == STATES[outcome].replace("RETRY", "SUCCESS")
    [line] = worker.records(what, id=result.id)
    assert not line["on_loop"]


@pytest.mark.parametrize("body", ["async", "def"])
@pytest.mark.parametrize("where", [*BEFORE, *AFTER])
def test_async_ones_are_awaited(worker, body, where):
    """An async handler or receiver is awaited; the next step waits for it."""
    outcome = {**BEFORE, **AFTER}[where]
    what = place(where, "async")
    result = worker.client.send(f"{body}_async", what, "waits", outcome)
    wait_for(lambda: worker.count(what, result), worker.tail)

    worker.client.send("open_gate").get(timeout=TIMEOUT)

    wait_for(lambda: worker.count(f"{what} ends", result), worker.tail)
    wait_for(lambda: result.ready(), worker.tail)
    assert result.state == STATES[outcome].replace("RETRY", "SUCCESS")


@pytest.mark.parametrize("body", ["async", "def"])
@pytest.mark.parametrize("flavour", ["plain", "async"])
@pytest.mark.parametrize("where", [*BEFORE, *AFTER])
def test_revoke_ends_that_task_only(worker, body, flavour, where):
    """One that comes while a handler or receiver runs ends this, and nothing else.

    A task whose outcome is stored keeps it; one whose body has not started is revoked.
    """
    outcome = {**BEFORE, **AFTER}[where]
    what = place(where, flavour)
    neighbour = worker.client.send("neighbour")
    how = "blocks" if flavour == "plain" else "waits"
    result = worker.client.send(f"{body}_{flavour}", what, how, outcome)
    worker.wait_started(neighbour)
    wait_for(lambda: worker.count(what, result), worker.tail)

    worker.client.app.control.revoke(result.id, terminate=True)

    worker.wait_settled(result)
    if where in BEFORE:
        with pytest.raises(TaskRevokedError):
            result.get(timeout=TIMEOUT)
        assert not worker.count("started", result)
    else:
        # The next attempt of a retry is refused as a revoked task.
        assert result.state in (STATES[outcome], "REVOKED" if outcome == "retries" else "")
        assert worker.count("started", result) == 1
    assert not neighbour.ready()
    worker.client.send("open_gate").get(timeout=TIMEOUT)
    assert neighbour.get(timeout=TIMEOUT) in worker.pool_pids()


@pytest.mark.parametrize("body", ["async", "def"])
@pytest.mark.parametrize(("flavour", "how"), [("plain", "blocks"), ("async", "waits")])
def test_time_limit_is_the_bodys(worker, body, flavour, how):
    """A handler may take longer than its task's hard limit, once the body has ended in time."""
    result = worker.client.s(f"{body}_{flavour}", "on_success", how, "succeeds").apply_async(
        time_limit=0.2
    )
    neighbours = [worker.client.send("neighbour") for _ in range(3)]
    worker.wait_started(*neighbours)
    wait_for(lambda: worker.count("on_success", result), worker.tail)

    # Longer than the worker's own clock would wait: limit, margin and grace.
    wait_for(lambda: result.state == "SUCCESS", worker.tail)
    started = os.times().elapsed
    wait_for(lambda: os.times().elapsed - started > 0.2 + 1 + GRACE + 2, "some seconds")

    assert not worker.count("on_success ends", result)
    worker.client.send("open_gate").get(timeout=TIMEOUT)
    worker.wait_settled(result)
    assert worker.count("on_success ends", result) == 1


@pytest.mark.parametrize("body", ["async", "def"])
@pytest.mark.parametrize(("flavour", "how"), [("plain", "blocks"), ("async", "waits")])
def test_handler_after_a_limit_is_bounded(worker, body, flavour, how):
    """After the hard limit of the body, a handler has the grace time, and no more."""
    task = {"async": "over_async", "def": "over_def"}[body]
    result = worker.client.s(f"{task}_{flavour}", "on_failure", how, "").apply_async(
        time_limit=0.2
    )
    wait_for(lambda: worker.count("on_failure", result), worker.tail)

    worker.wait_settled(result)

    assert type(result.result).__name__ == "TimeLimitExceeded"


@pytest.mark.parametrize("body", ["async", "def"])
def test_one_context(worker, body):
    """What a receiver sets in a context variable, body and later receivers see; tokens hold."""
    results = [worker.client.send(f"traced_{body}") for _ in range(20)]

    for result in results:
        seen = result.get(timeout=TIMEOUT)
        assert seen == [f"plain of {result.id}", f"async of {result.id}", "prerun of async"]
        worker.wait_settled(result)
        [line] = worker.records("plain first", id=result.id)
        assert line["seen"] == "prerun of plain"
        lines = worker.records("detached", id=result.id)
        assert [line["kind"] for line in lines] == ["plain", "async"]
        assert [line["seen"] for line in lines] == ["the body"] * 2
        assert [line["left"] for line in lines] == ["none"] * 2


def test_kinds_of_receivers(worker):
    """Bound methods, objects, late ones: each as Celery's `connect` has it, in its order."""
    result = worker.client.send("kinds")
    assert result.get(timeout=TIMEOUT) == "done"
    worker.wait_settled(result)

    lines = [line["what"] for line in worker.records(id=result.id)]
    expected = ["bound method", "async bound method", "async object", "fails", "after"]
    assert lines == [*expected, "second try"]
    assert "a receiver fails" in worker.log()


@pytest.mark.parametrize(
    ("where", "state"),
    [("before_start", "FAILURE"), ("on_success", "SUCCESS"), ("after_return", "SUCCESS")],
)
def test_cancelled_error_of_a_handler(worker, where, state):
    """A handler that raises CancelledError is one that fails: the process and the job go on."""
    result = worker.client.send("async_async", where, "cancelled", "succeeds")
    worker.wait_settled(result)

    assert result.state == state


def test_what_plain_handlers_may_do(worker):
    """They publish with blocking calls, as anywhere else, and the task is the current one."""
    result = worker.client.send("publishing", False)
    worker.wait_settled(result)
    wait_for(lambda: worker.count("noted", result), worker.tail)
    [line] = worker.records("current", id=result.id)
    assert line["current"] == [result.id, "apps.handlers.publishing"]
    assert "blocks the event loop" not in worker.log()


@pytest.mark.parametrize("body", ["async", "def"])
@pytest.mark.parametrize(("flavour", "how"), [("plain", "blocks in C"), ("async", "refuses")])
@pytest.mark.parametrize("where", ["on_success", "task_postrun", "on_failure", "task_prerun"])
def test_handler_that_refuses_to_end(start, body, flavour, how, where):
    """Its task is settled with what is stored; the process goes when its neighbours are done."""
    outcome = {**BEFORE, **AFTER}[where]
    what = place(where, flavour)
    with start() as worker:
        [pid] = worker.pool_pids()
        neighbour = worker.client.send("neighbour")
        worker.wait_started(neighbour)
        result = worker.client.send(f"{body}_{flavour}", what, how, outcome)
        wait_for(lambda: worker.count(what, result), worker.tail)

        worker.client.app.control.revoke(result.id, terminate=True)

        worker.wait_settled(result)
        if where in BEFORE:
            wait_for(lambda: result.state == "REVOKED", worker.tail)
        else:
            assert result.state == STATES[outcome]
        assert not neighbour.ready()
        # A new process takes new tasks; the old one has its own gate.
        other = wait_for(lambda: (set(worker.up_processes()) - {pid} or {None}).pop(), worker.tail)
        assert other in worker.pool_pids()
        worker.client.app.control.revoke(neighbour.id, terminate=True)
        wait_for(lambda: pid not in worker.pool_pids(), worker.tail)


@pytest.mark.parametrize("body", ["async", "def"])
@pytest.mark.parametrize(("flavour", "how"), [("plain", "blocks"), ("async", "waits")])
@pytest.mark.parametrize("where", ["before_start", "on_success"])
def test_cold_shutdown(start, body, flavour, how, where):
    """It ends handlers, too, and is not held up by one."""
    with start() as worker:
        result = worker.client.send(f"{body}_{flavour}", where, how, "succeeds")
        wait_for(lambda: worker.count(where, result), worker.tail)

        worker.process.send_signal(signal.SIGQUIT)

        worker.wait_exit()
        assert worker.count("started", result) == (where == "on_success")
