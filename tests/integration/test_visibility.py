"""Redis: a shutdown gives unacknowledged messages back, whatever the visibility timeout."""

import signal

import pytest

TIMEOUT = 60

VISIBILITY = "broker_transport_options={'visibility_timeout': 3600}; task_acks_late=True"
REMAP = {"REMAP_SIGTERM": "SIGQUIT"}


@pytest.fixture
def start(new_transport, start_worker):
    """Start a worker that acks late, with a visibility timeout of an hour."""

    def start(conf="", env=None):
        settings = VISIBILITY + (f"; {conf}" if conf else "")
        return start_worker(
            new_transport("redis"),
            "limits",
            *("-c", 4, "--processes", 2),
            env={"LIMITS_CONF": settings, **(env or {})},
        )

    return start


def run_again(worker, gate, *results):
    """Start the worker again, and let the tasks end that it was given back."""
    worker.restart()
    worker.wait_started(*results, times=2)
    gate.touch()
    assert [result.get(timeout=TIMEOUT) for result in results] == ["held"] * len(results)


def test_cold_shutdown(start, tmp_path):
    """After a cold shutdown the restarted worker runs the task."""
    gate = tmp_path / "gate"
    with start() as worker:
        result = worker.client.send("hold", str(gate))
        worker.wait_started(result)

        worker.process.send_signal(signal.SIGQUIT)

        worker.wait_exit()
        assert "Restoring 1 unacknowledged message(s)" in worker.log()
        run_again(worker, gate, result)


@pytest.mark.parametrize(
    ("signum", "env"),
    [(signal.SIGQUIT, {}), (signal.SIGTERM, REMAP)],
    ids=["SIGQUIT", "REMAP_SIGTERM"],
)
def test_soft_shutdown_that_none_finishes(start, tmp_path, signum, env):
    """After a soft shutdown that was too short the restarted worker runs all tasks."""
    gate = tmp_path / "gate"
    with start("worker_soft_shutdown_timeout=1", env) as worker:
        results = [worker.client.send("hold", str(gate)) for _ in range(2)]
        worker.wait_started(*results)

        worker.process.send_signal(signum)

        worker.wait_exit()
        assert "Initiating Soft Shutdown, terminating in 1 seconds" in worker.log()
        assert "Restoring 2 unacknowledged message(s)" in worker.log()
        run_again(worker, gate, *results)


@pytest.mark.parametrize(
    ("signum", "env"),
    [(signal.SIGQUIT, {}), (signal.SIGTERM, REMAP)],
    ids=["SIGQUIT", "REMAP_SIGTERM"],
)
def test_soft_shutdown_that_one_finishes(start, tmp_path, signum, env):
    """Only the task that did not finish is given back and run again."""
    gates = [tmp_path / "gate 0", tmp_path / "gate 1"]
    with start("worker_soft_shutdown_timeout=3", env) as worker:
        results = [worker.client.send("hold", str(gate)) for gate in gates]
        worker.wait_started(*results)

        worker.process.send_signal(signum)
        worker.wait_log("Initiating Soft Shutdown")
        gates[0].touch()

        assert results[0].get(timeout=TIMEOUT) == "held"
        worker.wait_exit()
        assert "Restoring 1 unacknowledged message(s)" in worker.log()
        run_again(worker, gates[1], results[1])
        assert worker.count("started", results[0]) == 1


def test_eta_task_after_an_idle_soft_shutdown(start, tmp_path):
    """A task that waits for its time is given back too."""
    conf = "worker_soft_shutdown_timeout=1; worker_enable_soft_shutdown_on_idle=True"
    with start(conf) as worker:
        result = worker.client.send("hold", str(tmp_path / "gate"), countdown=600)
        worker.wait_log(f"hold[{result.id}] received")

        worker.process.send_signal(signal.SIGQUIT)

        worker.wait_exit()
        assert "Initiating Soft Shutdown, terminating in 1 seconds" in worker.log()
        assert "Restoring 1 unacknowledged message(s)" in worker.log()
        worker.restart()
        worker.wait_log(f"hold[{result.id}] received", count=2)
