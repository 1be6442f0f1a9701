"""What each signal to the worker ends, and what it lets finish."""

import os
import signal
import time

import pytest
from celery.exceptions import TaskRevokedError
from transports import TRANSPORTS
from worker import wait_for

TIMEOUT = 60

REMAP = {"REMAP_SIGTERM": "SIGQUIT"}

#: What Celery prints for a signal, so that the next one is not the same one.
SAYS = {
    signal.SIGTERM: "Warm shutdown (MainProcess)",
    signal.SIGINT: "Warm shutdown (MainProcess)",
    signal.SIGQUIT: "Hitting Ctrl+C again will terminate all running tasks!",
}
SAYS_SECOND = {
    signal.SIGINT: "Hitting Ctrl+C again will terminate all running tasks!",
    signal.SIGQUIT: "Waiting gracefully for cold shutdown to complete...",
}


@pytest.fixture
def start(new_transport, start_worker):
    """Start a worker on a queue of its own, on the transport of that name."""

    def start(name, conf="", env=None):
        settings = "asyncpool_cancel_grace=1" + (f"; {conf}" if conf else "")
        return start_worker(
            new_transport(name),
            "limits",
            *("-c", 4, "--processes", 2),
            env={"LIMITS_CONF": settings, **(env or {})},
        )

    return start


def test_warm_shutdown_waits(transport, start_worker, tmp_path):
    """SIGTERM: running tasks end, their results are stored, and the worker exits with 0."""
    gate = tmp_path / "gate"
    with start_worker(transport, "flight", "-c", 20, "--processes", 2) as worker:
        results = [worker.client.send("wait", str(gate), n) for n in range(10)]
        wait_for(lambda: len(worker.records("started")) == 10, worker.pool)

        worker.process.send_signal(signal.SIGTERM)
        worker.wait_log("waiting for 10 tasks")
        gate.touch()

        assert worker.wait_exit() == 0
        assert all(result.get(timeout=TIMEOUT) for result in results)


def test_children_ignore_sigterm(redis_transport, start_worker, tmp_path):
    """SIGTERM to the whole family, as systemd sends it, is a warm shutdown too."""
    gate = tmp_path / "gate"
    with start_worker(redis_transport, "flight", "-c", 20, "--processes", 2) as worker:
        results = [worker.client.send("wait", str(gate), n) for n in range(10)]
        wait_for(lambda: len(worker.records("started")) == 10, worker.pool)

        for pid in worker.family():
            os.kill(pid, signal.SIGTERM)
        worker.wait_log("waiting for 10 tasks")
        gate.touch()

        assert worker.wait_exit() == 0
        assert all(result.get(timeout=TIMEOUT) for result in results)


@pytest.mark.parametrize("how", ["quit", "kill"])
def test_nothing_outlives_the_worker(transport, start_worker, tmp_path, how):
    """After a cold shutdown, and after kill -9 of the main process, no subprocess is left."""
    with start_worker(transport, "flight", "-c", 4, "--processes", 2) as worker:
        worker.wait_started(worker.client.send("spawn_sleeper", str(tmp_path / "gate")))
        wait_for(lambda: len(worker.records("sleeper")) == 2, worker.tail)

        worker.process.send_signal(signal.SIGQUIT if how == "quit" else signal.SIGKILL)
        worker.wait_exit()

        wait_for(lambda: not worker.family(), worker.family)


def test_worker_process_signals(redis_transport, start_worker):
    """worker_process_init and worker_process_shutdown are sent once in each process."""
    with start_worker(redis_transport, "lifecycle", "-c", 4, "--processes", 2) as worker:
        pids = worker.pool_pids()

        worker.process.send_signal(signal.SIGTERM)

        assert worker.wait_exit() == 0
        for what in ("init", "shutdown"):
            assert sorted(line["pid"] for line in worker.records(what)) == sorted(pids)
        assert all(line["loop"] is False for line in worker.records("init"))
        assert all(line["exitcode"] == 0 for line in worker.records("shutdown"))


def test_three_sigterms_are_one(start, tmp_path):
    """Further SIGTERMs change nothing: the running task ends, and the worker exits with 0."""
    gate = tmp_path / "gate"
    with start("redis") as worker:
        result = worker.client.send("hold", str(gate))
        worker.wait_started(result)

        for number in (1, 2, 3):
            worker.process.send_signal(signal.SIGTERM)
            worker.wait_log(SAYS[signal.SIGTERM], count=number)
        gate.touch()

        assert worker.wait_exit() == 0
        assert result.get(timeout=TIMEOUT) == "held"


@pytest.mark.parametrize(
    ("name", "signum", "env"),
    [
        *((name, signal.SIGQUIT, {}) for name in TRANSPORTS),
        ("rabbitmq", signal.SIGTERM, REMAP),
    ],
    ids=[*TRANSPORTS, "REMAP_SIGTERM"],
)
def test_cold_shutdown(start, name, signum, env):
    """A running body cleans up and has no outcome; its message, acked late, is run again."""
    with start(name, "task_acks_late=True", env) as worker:
        result = worker.client.send("shaped", "plain")
        worker.wait_started(result)

        worker.process.send_signal(signum)

        worker.wait_exit()
        assert "Cold shutdown (MainProcess)" in worker.log()
        assert worker.count("cleaned up", result) == 1
        for what in ("task_success", "task_failure", "task_revoked"):
            assert worker.count(what, result) == 0, what
        assert not result.ready()

        worker.restart()
        worker.wait_started(result, times=2)
        result.revoke(terminate=True)
        with pytest.raises(TaskRevokedError):
            result.get(timeout=TIMEOUT)


def test_cold_shutdown_interrupts_a_report(start):
    """A signal that comes while Celery is told of an outcome ends the worker all the same."""
    with start("redis", env={"LIMITS_QUIT_AT_REVOKE": "1"}) as worker:
        result, neighbour = (worker.client.send("shaped", "plain") for _ in range(2))
        worker.wait_started(result)
        worker.wait_started(neighbour)

        result.revoke(terminate=True)

        worker.wait_exit()
        assert worker.count("task_revoked", result) == 1
        assert worker.count("cleaned up", neighbour) == 1


def test_cold_shutdown_with_early_ack(start):
    """A task that was acknowledged when it started is not run again."""
    with start("redis") as worker:
        result = worker.client.send("shaped", "plain")
        worker.wait_started(result)
        # The main process acknowledges, and may hear of the start a little later.
        inspect = worker.client.app.control.inspect([worker.hostname], timeout=5, limit=1)
        wait_for(lambda: (inspect.active() or {}).get(worker.hostname), worker.tail)

        worker.process.send_signal(signal.SIGQUIT)
        worker.wait_exit()

        worker.restart()
        worker.client.send("neighbour", 0).get(timeout=TIMEOUT)
        assert worker.count("started", result) == 1
        assert worker.count("cleaned up", result) == 1


@pytest.mark.parametrize("task", ["refuses", "blocks"])
def test_two_sigquits(start, tmp_path, task):
    """A second SIGQUIT keeps the first from nothing: the worker ends, whatever its bodies do."""
    with start("redis") as worker:
        argument = str(tmp_path / "gate") if task == "refuses" else 600
        worker.wait_started(worker.client.send(task, argument))

        worker.process.send_signal(signal.SIGQUIT)
        worker.wait_log(SAYS[signal.SIGQUIT])
        worker.process.send_signal(signal.SIGQUIT)

        worker.wait_exit()
        assert "Cold shutdown (MainProcess)" in worker.log()


@pytest.mark.parametrize("task", ["refuses", "blocks"])
@pytest.mark.parametrize("signals", ["TERM QUIT QUIT", "QUIT QUIT QUIT", "INT INT INT"])
def test_third_signal_is_the_end(start, tmp_path, task, signals):
    """However long asyncpool_cancel_grace is, and whatever the bodies do."""
    with start("redis", "asyncpool_cancel_grace=600") as worker:
        argument = str(tmp_path / "gate") if task == "refuses" else 600
        worker.wait_started(worker.client.send(task, argument))

        first, second, third = (getattr(signal, f"SIG{name}") for name in signals.split())
        worker.process.send_signal(first)
        worker.wait_log(SAYS[first])
        worker.process.send_signal(second)
        worker.wait_log(SAYS[second] if second != first else SAYS_SECOND[second])
        worker.process.send_signal(third)

        worker.wait_exit()


def test_first_ctrl_c_is_warm(start, tmp_path):
    """Ctrl-C in the terminal: the running task ends, and its result is there."""
    gate = tmp_path / "gate"
    with start("redis") as worker:
        result = worker.client.send("hold", str(gate))
        worker.wait_started(result)

        os.killpg(worker.process.pid, signal.SIGINT)
        worker.wait_log("waiting for 1 tasks")
        gate.touch()

        worker.wait_exit()
        assert result.get(timeout=TIMEOUT) == "held"


@pytest.mark.parametrize("task", ["shaped", "refuses", "blocks"])
def test_second_ctrl_c_is_cold(start, tmp_path, task):
    """The second Ctrl-C ends bodies of any kind; those that can clean up do."""
    argument = {"shaped": "plain", "refuses": str(tmp_path / "gate"), "blocks": 600}[task]
    with start("redis") as worker:
        result = worker.client.send(task, argument)
        worker.wait_started(result)

        os.killpg(worker.process.pid, signal.SIGINT)
        worker.wait_log("waiting for 1 tasks")
        os.killpg(worker.process.pid, signal.SIGINT)

        worker.wait_exit()
        assert SAYS[signal.SIGQUIT] in worker.log()
        assert worker.count("cleaned up", result) == (task == "shaped")
        assert worker.count("task_success", result) == 0


@pytest.mark.parametrize(
    ("signum", "env"),
    [(signal.SIGQUIT, {}), (signal.SIGTERM, REMAP)],
    ids=["SIGQUIT", "REMAP_SIGTERM"],
)
def test_soft_shutdown(start, tmp_path, signum, env):
    """worker_soft_shutdown_timeout: a task may finish first, and its limits do not count on."""
    gate = tmp_path / "gate"
    with start("redis", "worker_soft_shutdown_timeout=5", env) as worker:
        result = worker.client.send("hold", str(gate), soft_time_limit=3, time_limit=4)
        worker.wait_started(result)

        worker.process.send_signal(signum)
        worker.wait_log("Initiating Soft Shutdown, terminating in 5 seconds")
        gate.touch()

        assert result.get(timeout=TIMEOUT) == "held"
        worker.wait_exit()
        assert "Cold shutdown (MainProcess)" in worker.log()
        assert "time limit" not in worker.log()
        assert result.state == "SUCCESS"
        assert worker.count("task_success", result) == 1
        assert worker.count("task_failure", result) == worker.count("task_retry", result) == 0


@pytest.mark.parametrize("name", ["rabbitmq", "filesystem"])
def test_soft_shutdown_keeps_what_has_finished(start, tmp_path, name):
    """Of tasks acked late, only those that did not finish in time are run again."""
    gates = [tmp_path / "gate 0", tmp_path / "gate 1"]
    conf = "worker_soft_shutdown_timeout=3; task_acks_late=True"
    with start(name, conf) as worker:
        results = [worker.client.send("hold", str(gate)) for gate in gates]
        worker.wait_started(*results)

        worker.process.send_signal(signal.SIGQUIT)
        worker.wait_log("Initiating Soft Shutdown")
        gates[0].touch()
        assert results[0].get(timeout=TIMEOUT) == "held"
        worker.wait_exit()

        worker.restart()
        worker.wait_started(results[1], times=2)
        worker.client.send("neighbour", 0).get(timeout=TIMEOUT)
        assert worker.count("started", results[0]) == 1
        assert results[0].state == "SUCCESS"
        gates[1].touch()
        assert results[1].get(timeout=TIMEOUT) == "held"


@pytest.mark.parametrize(
    ("signum", "env"),
    [(signal.SIGQUIT, {}), (signal.SIGTERM, REMAP)],
    ids=["SIGQUIT", "REMAP_SIGTERM"],
)
def test_second_signal_hurries_a_soft_shutdown(start, signum, env):
    """During a soft shutdown the second signal cancels bodies, and the third ends the worker."""
    with start("redis", "worker_soft_shutdown_timeout=600", env) as worker:
        result = worker.client.send("shaped", "plain")
        worker.wait_started(result)

        worker.process.send_signal(signum)
        worker.wait_log("Initiating Soft Shutdown, terminating in 600 seconds")
        worker.process.send_signal(signum)
        worker.wait_log("Waiting gracefully for cold shutdown to complete...")
        wait_for(lambda: worker.count("cleaned up", result), worker.tail)
        worker.process.send_signal(signal.SIGQUIT)

        worker.wait_exit()


def test_soft_shutdown_when_idle(start):
    """Without a task there is none, but with worker_enable_soft_shutdown_on_idle."""
    text = "Initiating Soft Shutdown"
    conf = "worker_soft_shutdown_timeout=1"
    with start("redis", conf) as worker:
        worker.process.send_signal(signal.SIGQUIT)
        worker.wait_exit()
        assert text not in worker.log()

    with start("redis", f"{conf}; worker_enable_soft_shutdown_on_idle=True") as worker:
        worker.process.send_signal(signal.SIGQUIT)
        worker.wait_exit()
        assert text in worker.log()


@pytest.mark.parametrize("name", TRANSPORTS)
def test_remote_shutdown(start, tmp_path, name):
    """`celery control shutdown` waits for what runs, and the worker exits with 0."""
    gate = tmp_path / "gate"
    with start(name) as worker:
        result = worker.client.send("hold", str(gate))
        worker.wait_started(result)

        worker.client.app.control.shutdown(destination=[worker.hostname])
        worker.wait_log("waiting for 1 tasks")
        gate.touch()

        assert worker.wait_exit() == 0
        assert result.get(timeout=TIMEOUT) == "held"


@pytest.mark.parametrize(
    ("name", "tasks"), [("redis", 0), ("redis", 200), ("rabbitmq", 200), ("filesystem", 50)]
)
def test_cold_shutdown_at_any_moment(name, tasks, new_transport, start_worker):
    """A SIGQUIT from "ready" on ends the worker with 0, whatever it interrupts.

    Celery stops its consumer and the pool in its signal handler.
    """
    transport = new_transport(name)
    for milliseconds in (0, 5, 20):
        worker = start_worker(transport, "operations", "-c", 4, "--processes", 2)
        for _ in range(tasks):
            worker.client.send("ok")
        try:
            worker.start()
            worker.wait_log(" ready.")
            time.sleep(milliseconds / 1000)
            worker.process.send_signal(signal.SIGQUIT)
            if name == "filesystem":
                wait_for(worker._has_ended, worker.tail)
            assert worker.wait_exit() == 0, worker.tail()
            assert "Traceback" not in worker.log().partition(" ready.")[2], worker.tail()
        finally:
            worker.kill_everything()
            worker.client.close()
