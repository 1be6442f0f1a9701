"""asyncpool_limits: how many tasks of a name run at once, and nobody else is held up by that."""

import os
import signal
from datetime import UTC, datetime, timedelta

import pytest
from billiard.exceptions import WorkerLostError
from capped import (
    PDF,
    SCRAPE,
    TIMEOUT,
    all_done,
    hold,
    most_at_once,
    send_held,
    start,
    wait_counts,
    wait_idle,
)
from celery.exceptions import TaskRevokedError
from worker import wait_for

MANY = 200


@pytest.fixture(scope="module")
def worker(transport, start_worker):
    """Six slots in two processes, and a prefetch of six."""
    with start(start_worker, transport) as worker:
        yield worker


@pytest.fixture
def gate(tmp_path):
    """What the tasks wait for."""
    return tmp_path / "gate"


def test_others_run_although_hundreds_came_first(worker, gate):
    """Hundreds of capped messages first: two run, and the tasks behind them run at once."""
    scrapes = send_held(worker, gate, MANY)
    neighbours = [worker.client.send("neighbour") for _ in range(20)]

    pids = {result.get(timeout=TIMEOUT) for result in neighbours}

    assert pids <= set(worker.pool_pids())
    wait_counts(worker, 2, MANY - 2)
    assert worker.pool()["limits"][SCRAPE] == {"limit": 2, "running": 2, "waiting": MANY - 2}
    assert len({line["id"] for line in worker.records("started", cap=SCRAPE[:14])}) == 2
    gate.touch()
    assert all_done(scrapes)
    assert most_at_once(worker, *scrapes) == 2
    wait_idle(worker)


def test_misspelt_cap(worker):
    """The log names a cap that no task has, and no other."""
    assert "asyncpool_limits: 'apps.caps.pfd' is the cap of no task" in worker.log()
    assert worker.log().count("is the cap of no task") == 1


def test_tasks_of_a_pattern_share_a_cap(worker, gate):
    """Of two tasks that match one pattern, three run at once."""
    results = send_held(worker, gate, 8, "pdf_render", "pdf_merge")

    wait_counts(worker, 3, 5, PDF)
    gate.touch()

    assert all_done(results)
    assert most_at_once(worker, *results) == 3
    wait_idle(worker)


def test_terminate_one_that_waits(worker, gate):
    """A task that waits for its cap is revoked at once, and never starts."""
    results = hold(worker, gate, 2)

    results[2].revoke(terminate=True)

    with pytest.raises(TaskRevokedError):
        results[2].get(timeout=TIMEOUT)
    wait_counts(worker, 2, 1)
    gate.touch()
    assert all_done([*results[:2], results[3]])
    assert worker.count("started", results[2]) == 0
    wait_idle(worker)


def test_revoke_one_that_waits(worker, gate):
    """A task that is revoked while it waits never starts; the next one takes its turn."""
    results = hold(worker, gate, 2)

    results[2].revoke()

    worker.wait_log(f"Tasks flagged as revoked: {results[2].id}")
    gate.touch()
    with pytest.raises(TaskRevokedError):
        results[2].get(timeout=TIMEOUT)
    assert all_done([*results[:2], results[3]])
    assert worker.count("started", results[2]) == 0
    wait_idle(worker)


def test_one_expires_while_it_waits(worker, gate):
    """A task that expires while it waits for its cap never starts."""
    results = hold(worker, gate, 0)
    expires = datetime.now(UTC) + timedelta(seconds=2)
    late = worker.client.send("scrape", str(gate), expires=expires)

    wait_for(lambda: datetime.now(UTC) > expires, "it has expired")
    gate.touch()

    with pytest.raises(TaskRevokedError, match="expired"):
        late.get(timeout=TIMEOUT)
    assert all_done(results)
    assert worker.count("started", late) == 0
    wait_idle(worker)


def test_terminate_one_that_runs(worker, gate):
    """A task that is ended gives its place to the next one."""
    results = hold(worker, gate, 1)

    results[0].revoke(terminate=True)

    with pytest.raises(TaskRevokedError):
        results[0].get(timeout=TIMEOUT)
    worker.wait_started(results[2])
    gate.touch()
    assert all_done(results[1:])
    assert most_at_once(worker, *results[1:]) == 2
    wait_idle(worker)


def test_process_is_killed(worker, gate):
    """A process that dies gives back the places of its tasks, and no more than these."""
    results = hold(worker, gate, 4)
    pid = worker.records("started", id=results[0].id)[0]["pid"]
    lost = [r for r in results[:2] if worker.records("started", id=r.id, pid=pid)]

    os.kill(pid, signal.SIGKILL)

    for result in lost:
        with pytest.raises(WorkerLostError):
            result.get(timeout=TIMEOUT)
    wait_counts(worker, 2, 4 - len(lost))
    others = [result for result in results if result not in lost]
    gate.touch()
    assert all_done(others)
    assert most_at_once(worker, *results, killed=[pid]) == 2
    wait_idle(worker)
    wait_for(lambda: len(worker.up_processes()) == 2, worker.pool)
