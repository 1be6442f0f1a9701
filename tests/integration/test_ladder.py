"""Bodies that refuse to end or block the loop; revokes at every stage of a task's life."""

import signal
import time
from collections import Counter

import pytest
from billiard.exceptions import WorkerLostError
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from worker import Events, wait_for

TIMEOUT = 60


def whats(worker, task_id):
    return Counter(line["what"] for line in worker.records(id=task_id))


def wait_started(worker, *results):
    wait_for(lambda: all(whats(worker, r.id)["started"] for r in results), worker.tail)


@pytest.fixture
def start(redis_transport, start_worker):
    """Start a worker with short times."""

    def start(*args, transport=redis_transport, conf="", **options):
        settings = "asyncpool_cancel_grace=1" + (f"; {conf}" if conf else "")
        return start_worker(transport, "limits", *args, env={"LIMITS_CONF": settings}, **options)

    return start


@pytest.mark.parametrize("how", ["hard", "revoke"])
@pytest.mark.parametrize("task", ["refuses", "def_sleeps"])
def test_body_that_refuses(start, transport, tmp_path, task, how):
    """Its task is reported once; a replacement starts, neighbours finish, the process goes."""
    argument = str(tmp_path / "no gate") if task == "refuses" else 600
    gate = tmp_path / "gate"
    with start("-c", 10, "--processes", 1, transport=transport) as worker:
        [pid] = worker.pool_pids()
        neighbours = [worker.client.send("hold", str(gate)) for _ in range(3)]
        wait_started(worker, *neighbours)
        options = {"time_limit": 0.3} if how == "hard" else {}
        result = worker.client.send(task, argument, **options)
        wait_started(worker, result)
        if how == "revoke":
            result.revoke(terminate=True)

        with pytest.raises(TimeLimitExceeded if how == "hard" else TaskRevokedError):
            result.get(timeout=TIMEOUT)

        wait_for(
            lambda: [p for p, i in worker.up_processes().items() if p != pid],
            lambda: f"a replacement\n{worker.tail()}",
        )
        assert worker.client.send("neighbour", 0).get(timeout=TIMEOUT) != pid
        assert pid in worker.pool_pids()
        gate.touch()
        assert [n.get(timeout=TIMEOUT) for n in neighbours] == ["held"] * 3
        assert all(whats(worker, n.id)["started"] == 1 for n in neighbours)
        wait_for(lambda: pid not in worker.pool_pids(), worker.tail)
        assert result.state == ("FAILURE" if how == "hard" else "REVOKED")
        recorded = whats(worker, result.id)
        expected = {"hard": ("task_failure", "on_failure"), "revoke": ("task_revoked",)}[how]
        for what in ("task_failure", "on_failure", "task_revoked", "task_success"):
            assert recorded[what] == (what in expected), what
        assert recorded["ended late"] == 0


def test_late_end_of_a_body_that_refused(start, tmp_path):
    """What such a body returns in the end is dropped: its outcome stays."""
    gate, neighbours_gate = tmp_path / "gate", tmp_path / "neighbour's gate"
    with start("-c", 10, "--processes", 1) as worker:
        neighbour = worker.client.send("hold", str(neighbours_gate))
        result = worker.client.send("refuses", str(gate), time_limit=0.3)
        with pytest.raises(TimeLimitExceeded):
            result.get(timeout=TIMEOUT)

        gate.touch()

        wait_for(lambda: whats(worker, result.id)["ended late"], worker.tail)
        wait_for(lambda: whats(worker, result.id)["task_postrun"], worker.tail)
        neighbours_gate.touch()
        assert neighbour.get(timeout=TIMEOUT) == "held"
        wait_for(lambda: len(worker.up_processes()) == 1, worker.pool)
        assert result.state == "FAILURE"
        assert whats(worker, result.id)["task_success"] == 0
        assert whats(worker, result.id)["task_failure"] == 1


def test_drain_timeout(start, tmp_path):
    """Neighbours of a body that refuses have asyncpool_drain_timeout, then they are lost."""
    gate = tmp_path / "gate"
    with start("-c", 10, "--processes", 1, conf="asyncpool_drain_timeout=1") as worker:
        neighbour = worker.client.send("neighbour", 600)
        result = worker.client.send("refuses", str(gate), time_limit=0.3)

        with pytest.raises(TimeLimitExceeded):
            result.get(timeout=TIMEOUT)
        with pytest.raises(WorkerLostError, match="asyncpool_drain_timeout"):
            neighbour.get(timeout=TIMEOUT)


def test_two_hundred_neighbours(start, tmp_path):
    """200 tasks that share a process with a timed-out, a revoked and a refusing one succeed."""
    gate = tmp_path / "gate"
    with start("-c", 300, "--processes", 1) as worker:
        neighbours = [worker.client.send("hold", str(gate)) for _ in range(200)]
        wait_started(worker, *neighbours)
        timed_out = worker.client.send("shaped", "plain", time_limit=0.5)
        revoked = worker.client.send("shaped", "plain")
        refusing = worker.client.send("refuses", str(tmp_path / "no gate"), time_limit=0.5)
        wait_started(worker, timed_out, revoked, refusing)
        revoked.revoke(terminate=True)
        for result, error in (
            (timed_out, TimeLimitExceeded),
            (revoked, TaskRevokedError),
            (refusing, TimeLimitExceeded),
        ):
            with pytest.raises(error):
                result.get(timeout=TIMEOUT)

        gate.touch()

        assert [n.get(timeout=TIMEOUT) for n in neighbours] == ["held"] * 200
        assert len({line["pid"] for line in worker.records("started")}) == 1


def test_blocked_loop_is_named(start):
    """A blocked loop gives one warning with the task and its line, and one when it is free."""
    # Not less than a second: a busy machine may keep a process waiting for its CPU.
    with start("-c", 4, "--processes", 1, conf="asyncpool_block_warning=1") as worker:
        result = worker.client.send("blocks", 3.5)

        assert result.get(timeout=TIMEOUT) == "free"

        worker.wait_log("the event loop is free again")
        log = worker.log()
        assert log.count("the event loop is blocked for") == 1
        assert f"by task apps.limits.blocks[{result.id}]" in log
        assert "time.sleep(seconds)  # the blocking line" in log
        wait_for(lambda: [i["blocks"] for i in worker.up_processes().values()] == [1], worker.pool)
        [info] = worker.up_processes().values()
        assert info["blocked-seconds"] > 1


def test_blocked_loop_unwatched(start):
    """asyncpool_block_warning = 0 switches the warning off."""
    with start("-c", 4, "--processes", 1, conf="asyncpool_block_warning=0") as worker:
        assert worker.client.send("blocks", 1.5).get(timeout=TIMEOUT) == "free"

        assert "the event loop is" not in worker.log()


def test_hard_limit_of_a_body_that_blocks(start):
    """The worker's own clock ends it: stack in the log, task timed out, neighbours lost."""
    with start("-c", 4, "--processes", 1) as worker:
        [pid] = worker.pool_pids()
        neighbour = worker.client.send("neighbour", 600)
        wait_started(worker, neighbour)
        result = worker.client.send("blocks", 600, time_limit=1)

        with pytest.raises(TimeLimitExceeded):
            result.get(timeout=TIMEOUT)
        with pytest.raises(WorkerLostError):
            neighbour.get(timeout=TIMEOUT)

        wait_for(lambda: worker.up_processes() and pid not in worker.up_processes(), worker.tail)
        assert "limits.py" in worker.log().partition("is here:")[2]
        assert "Hard time limit (1s) exceeded for apps.limits.blocks" in worker.log()
        recorded = whats(worker, result.id)
        assert recorded["task_failure"] == recorded["on_failure"] == 1
        assert worker.client.send("neighbour", 0).get(timeout=TIMEOUT) in worker.pool_pids()


def test_limits_of_the_neighbours_of_a_body_that_blocks(start):
    """A blocking neighbour delays limits and loses none."""
    with start("-c", 10, "--processes", 1, conf="asyncpool_cancel_grace=10") as worker:
        soft = worker.client.send("shaped", "plain", soft_time_limit=1)
        hard = worker.client.send("shaped", "plain", time_limit=1)
        wait_started(worker, soft, hard)
        blocking = worker.client.send("blocks", 3)

        assert blocking.get(timeout=TIMEOUT) == "free"
        with pytest.raises(SoftTimeLimitExceeded):
            soft.get(timeout=TIMEOUT)
        with pytest.raises(TimeLimitExceeded):
            hard.get(timeout=TIMEOUT)


def test_limits_for_the_whole_worker(start):
    """--time-limit and --soft-time-limit hold for tasks without limits of their own."""
    with start("-c", 4, "--processes", 1, "--soft-time-limit", 0.3, "--time-limit", 30) as worker:
        result = worker.client.send("shaped", "plain")

        with pytest.raises(SoftTimeLimitExceeded):
            result.get(timeout=TIMEOUT)
        assert worker.pool()["timeouts"] == [0.3, 30.0]


def test_tasks_with_thread_limits_are_listed(start):
    """At its start the worker lists, in one line, the def tasks that have limits."""
    with start("-c", 4, "--processes", 1, "--time-limit", 30) as worker:
        lines = [line for line in worker.log().splitlines() if "plain def tasks" in line]

        assert len(lines) == 1
        assert "apps.limits.def_sleeps" in lines[0]
        assert "apps.limits.shaped" not in lines[0]


def test_revoke_while_all_slots_are_full(start, tmp_path):
    """A revoke with terminate reaches a waiting and a running task when every slot is taken."""
    gate = tmp_path / "gate"
    with start("-c", 2, "--processes", 1) as worker:
        running = [worker.client.send("hold", str(gate)) for _ in range(2)]
        wait_started(worker, *running)
        waiting = worker.client.send("hold", str(gate))
        wait_for(lambda: worker.log().count("hold[") >= 3, worker.tail)

        waiting.revoke(terminate=True)
        running[0].revoke(terminate=True)

        with pytest.raises(TaskRevokedError):
            running[0].get(timeout=TIMEOUT)
        with pytest.raises(TaskRevokedError):
            waiting.get(timeout=TIMEOUT)
        gate.touch()
        assert running[1].get(timeout=TIMEOUT) == "held"
        assert whats(worker, waiting.id)["started"] == 0
        assert whats(worker, waiting.id)["task_revoked"] == 1


@pytest.mark.parametrize("signame", ["SIGTERM", "SIGKILL", "SIGUSR1"])
def test_revoke_with_any_signal(start, tmp_path, signame):
    """Whatever signal= says, only that task ends, and its process lives."""
    gate = tmp_path / "gate"
    with start("-c", 4, "--processes", 1) as worker:
        pids = worker.pool_pids()
        result, neighbour = (worker.client.send("hold", str(gate)) for _ in range(2))
        wait_started(worker, result, neighbour)

        result.revoke(terminate=True, signal=signame)

        with pytest.raises(TaskRevokedError):
            result.get(timeout=TIMEOUT)
        gate.touch()
        assert neighbour.get(timeout=TIMEOUT) == "held"
        assert worker.pool_pids() == pids


def test_revoke_by_stamped_header(start, tmp_path):
    """revoke_by_stamped_headers(terminate=True) ends the running tasks with that stamp."""
    gate = tmp_path / "gate"
    with start("-c", 4, "--processes", 1) as worker:
        message = worker.client.s("hold", str(gate))
        message.stamp(monitoring="yes")
        result = message.apply_async()
        neighbour = worker.client.send("hold", str(gate))
        wait_started(worker, result, neighbour)

        worker.client.app.control.revoke_by_stamped_headers(
            {"monitoring": ["yes"]}, terminate=True
        )

        with pytest.raises(TaskRevokedError):
            result.get(timeout=TIMEOUT)
        gate.touch()
        assert neighbour.get(timeout=TIMEOUT) == "held"


def test_revoke_without_terminate(start, tmp_path):
    """A revoke without terminate leaves a running task alone."""
    gate = tmp_path / "gate"
    with start("-c", 4, "--processes", 1) as worker:
        result = worker.client.send("hold", str(gate))
        wait_started(worker, result)

        result.revoke()
        worker.wait_log("flagged as revoked")
        gate.touch()

        assert result.get(timeout=TIMEOUT) == "held"


def test_revoke_during_warm_shutdown(start, transport, tmp_path):
    """A task that never ends can be revoked when the worker waits for it to end."""
    with start("-c", 4, "--processes", 1, transport=transport) as worker:
        result = worker.client.send("shaped", "plain")
        wait_started(worker, result)
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_log("waiting for 1 tasks")

        result.revoke(terminate=True)

        assert worker.wait_exit() == 0
        with pytest.raises(TaskRevokedError):
            result.get(timeout=TIMEOUT)
        assert whats(worker, result.id)["cleaned up"] == 1


@pytest.mark.parametrize("kind", ["soft", "hard", "revoke"])
def test_two_thousand_tasks_around_their_limits(redis_transport, start_worker, kind):
    """Of tasks that end at about their limit, each has one outcome, the same for everybody."""
    count = 2000 // 3
    transport = redis_transport
    env = {
        "LIMITS_CONF": "asyncpool_cancel_grace=1",
        "ASYNCPOOL_TEST_BACKEND": f"apps.recording_backend:RecordingBackend+{transport.backend}",
    }
    with (
        start_worker(transport, "limits", "-c", 1000, "--processes", 2, "-E", env=env) as worker,
        Events(worker.client.app) as events,
    ):
        options = {"soft": {"soft_time_limit": 0.5}, "hard": {"time_limit": 0.5}}.get(kind, {})
        # The revoke comes when a third of the tasks have ended.
        spread = 0.5 if options else 4
        results = []
        for number in range(count):
            duration = 0.25 + spread * number / count
            results.append(worker.client.send("racing", duration, **options))
        if not options:
            wait_for(lambda: len(worker.records("task_success")) > count // 3, worker.tail)
            ids = [result.id for result in results]
            worker.client.app.control.revoke(ids, terminate=True)

        wait_for(lambda: all(result.ready() for result in results), worker.tail)
        wait_for(lambda: worker.slots_in_use() == 0, worker.pool)
        wait_for(lambda: sum(events.ends().values()) >= count, events.ends)

        states = {result.id: result.state for result in results}
        assert len(set(states.values())) == 2, "the times were not around the limit"
        assert ends_by_event(events) == states
        assert ends_by_signal(worker) == states
        assert stored(worker) == states


def ends_by_event(events):
    """The state that each task's one event tells of."""
    states = {"task-succeeded": "SUCCESS", "task-failed": "FAILURE", "task-revoked": "REVOKED"}
    ends = events.ends()
    assert set(ends.values()) == {1}
    return {task_id: states[kind] for task_id, kind in ends}


def ends_by_signal(worker):
    """The state that each task's one signal tells of; its handler agrees."""
    states = {"task_success": "SUCCESS", "task_failure": "FAILURE", "task_revoked": "REVOKED"}
    seen = [(line["id"], line["what"]) for line in worker.records() if line["what"] in states]
    assert set(Counter(seen).values()) == {1}
    handled = Counter(line["id"] for line in worker.records("on_failure"))
    assert handled == Counter(task_id for task_id, what in seen if what == "task_failure")
    return {task_id: states[what] for task_id, what in seen}


def stored(worker):
    """The one state that was stored for each task.

    Once; but Celery's revoke command stores REVOKED itself, too, for a task that
    has not started.
    """
    writes = Counter((line["id"], line["state"]) for line in worker.records("stored"))
    assert len({task_id for task_id, _ in writes}) == len(writes)
    assert {count for (_, state), count in writes.items() if state != "REVOKED"} <= {1}
    return dict(writes.keys())


def test_limit_counts_from_the_start_of_the_body(start, tmp_path):
    """A task that had to wait for a slot longer than its limit still has all its time."""
    gate = tmp_path / "gate"
    with start("-c", 1, "--processes", 1) as worker:
        first = worker.client.send("hold", str(gate))
        wait_started(worker, first)
        second = worker.client.send("neighbour", 0.05, time_limit=1)
        sent = time.monotonic()
        wait_for(lambda: time.monotonic() - sent > 1.5, "its limit is over before it starts")

        gate.touch()

        assert second.get(timeout=TIMEOUT) in worker.pool_pids()
