"""asyncpool_limits: how many tasks of a name run at once, and nobody else is held up by that."""

import importlib.metadata
import os
import signal
from datetime import UTC, datetime, timedelta

import pytest
from billiard.exceptions import WorkerLostError
from celery.exceptions import TaskRevokedError
from transports import TRANSPORTS
from worker import wait_for

TIMEOUT = 60
CELERY = tuple(int(part) for part in importlib.metadata.version("celery").split(".")[:2])
SLOTS = 6
SCRAPE, PDF = "apps.caps.scrape", "apps.caps.pdf_*"
MANY = 200


@pytest.fixture(scope="module")
def worker(transport, start_worker):
    """Six slots in two processes, and a prefetch of six."""
    with start(start_worker, transport) as worker:
        yield worker


def start(start_worker, transport, *conf):
    return start_worker(
        transport,
        *("caps", "-c", SLOTS, "--processes", 2),
        env={"CAPS_CONF": "; ".join(["worker_prefetch_multiplier=1", *conf])},
    )


@pytest.fixture
def gate(tmp_path):
    """What the tasks wait for."""
    return tmp_path / "gate"


@pytest.fixture
def prefetch_of(rabbitmq_server):
    """Which numbers of messages RabbitMQ keeps unacknowledged at once, for its consumers."""

    def prefetch():
        listing = rabbitmq_server.ctl("-q", "list_channels", "global_prefetch_count")
        return {int(line) for line in listing.split() if line.isdecimal()}

    return prefetch


def counts(worker, cap=SCRAPE):
    """How many run and wait."""
    info = worker.pool()["limits"][cap]
    return info["running"], info["waiting"]


def wait_counts(worker, running, waiting, cap=SCRAPE):
    wait_for(
        lambda: counts(worker, cap) == (running, waiting),
        lambda: f"{running} running, {waiting} waiting: {counts(worker, cap)}\n{worker.tail()}",
    )


def wait_idle(worker):
    """Nothing runs, nothing waits, and all slots and places are free again."""
    wait_counts(worker, 0, 0)
    wait_counts(worker, 0, 0, PDF)
    wait_for(lambda: worker.slots_in_use() == 0, worker.pool)


def most_at_once(worker, *results, killed=()):
    """How many bodies of *results* ran at once, at most, but for those of *killed* processes."""
    ids = {result.id for result in results}
    running, most = set(), 0
    for line in worker.records():
        if line.get("id") not in ids or line["pid"] in killed:
            continue
        if line["what"] == "started":
            running.add(line["id"])
        else:
            running.discard(line["id"])
        most = max(most, len(running))
    return most


def send_held(worker, gate, count, *tasks):
    """Send *count* of the *tasks* in turn, which end when there is a *gate*."""
    tasks = tasks or ("scrape",)
    return [worker.client.send(tasks[n % len(tasks)], str(gate)) for n in range(count)]


def hold(worker, gate, waiting):
    """Two scrapes that run, and then as many that wait as *waiting*."""
    results = send_held(worker, gate, 2)
    worker.wait_started(*results)
    results += send_held(worker, gate, waiting)
    wait_counts(worker, 2, waiting)
    return results


def all_done(results):
    return [result.get(timeout=TIMEOUT) for result in results] == ["done"] * len(results)


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


@pytest.mark.parametrize("name", TRANSPORTS)
def test_warm_shutdown(new_transport, start_worker, gate, name):
    """What runs ends; what waits for its cap stays with the broker, for the next worker."""
    with start(start_worker, new_transport(name)) as worker:
        results = hold(worker, gate, 5)

        worker.process.send_signal(signal.SIGTERM)
        worker.wait_log("waiting for 2 tasks")
        gate.touch()
        assert worker.wait_exit() == 0

        assert len(worker.records("started")) == 2
        worker.restart()
        assert all_done(results)
        assert len(worker.records("started")) == 7
        assert most_at_once(worker, *results) == 2


def test_prefetch(new_transport, start_worker, prefetch_of, gate):
    """RabbitMQ is asked for as many more as wait for their caps, and in the end for no more."""
    with start(start_worker, new_transport("rabbitmq")) as worker:
        assert SLOTS in prefetch_of()
        results = hold(worker, gate, 28)

        wait_for(lambda: SLOTS + 28 in prefetch_of(), prefetch_of)
        assert worker.stats()["prefetch_count"] == SLOTS

        gate.touch()
        assert all_done(results)
        wait_for(lambda: max(prefetch_of()) == SLOTS, prefetch_of)
        wait_idle(worker)


def test_broker_is_lost(new_transport, start_worker, rabbitmq_server, prefetch_of, gate):
    """What runs keeps its place; what waits comes again, and everything runs once."""
    with start(start_worker, new_transport("rabbitmq")) as worker:
        results = hold(worker, gate, 10)

        rabbitmq_server.ctl("close_all_connections", "cut by a test")
        worker.wait_log("Connection to broker lost")
        worker.wait_log("Connected to amqp", count=2)
        results = worker.renew_client(*results)

        wait_counts(worker, 2, 10)
        neighbour = worker.client.send("neighbour")
        assert neighbour.get(timeout=TIMEOUT) in worker.pool_pids()
        gate.touch()
        assert all_done(results)
        assert most_at_once(worker, *results) == 2
        assert len(worker.records("started")) == 12 + 1
        wait_idle(worker)
        for _ in range(SLOTS):  # each ack restores some of what Celery has reduced
            worker.client.send("neighbour").get(timeout=TIMEOUT)
        wait_for(lambda: max(prefetch_of()) == SLOTS, prefetch_of)


@pytest.mark.skipif(CELERY < (5, 6), reason="worker_disable_prefetch is new in Celery 5.6")
def test_disabled_prefetch(new_transport, start_worker, gate):
    """A worker that fetches only what can run at once fetches more than what waits for a cap."""
    with start(start_worker, new_transport("redis"), "worker_disable_prefetch=True") as worker:
        scrapes = send_held(worker, gate, 30)
        neighbour = worker.client.send("neighbour")

        assert neighbour.get(timeout=TIMEOUT) in worker.pool_pids()
        gate.touch()
        assert all_done(scrapes)
        assert most_at_once(worker, *scrapes) == 2
        wait_idle(worker)


def test_pool_is_scaled_and_restarted(new_transport, start_worker, gate):
    """Slots come and go, and processes are replaced; the cap holds over old and new ones."""
    conf = "worker_pool_restarts=True"
    with start(start_worker, new_transport("redis"), conf) as worker:
        control = worker.client.app.control
        results = hold(worker, gate, 6)
        before = worker.pool_pids()

        control.pool_restart(destination=[worker.hostname], reply=True)
        wait_for(lambda: len(set(worker.pool_pids()) - set(before)) == 2, worker.pool)
        control.pool_grow(4, destination=[worker.hostname], reply=True)
        control.pool_shrink(8, destination=[worker.hostname], reply=True)

        wait_counts(worker, 2, 6)
        gate.touch()
        assert all_done(results)
        assert most_at_once(worker, *results) == 2
        wait_idle(worker)
        assert worker.pool()["max-concurrency"] == SLOTS + 4 - 8
        neighbours = [worker.client.send("neighbour") for _ in range(10)]
        assert all(result.get(timeout=TIMEOUT) for result in neighbours)
