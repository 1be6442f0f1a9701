"""kill -9 of the worker's main process: nobody survives it, and no late task is lost."""

import os
import signal
import time
from pathlib import Path

import pytest
from ending import Ending, ending_well
from worker import wait_for

#: Seconds after which Redis gives the messages of a worker that is gone to others.
VISIBILITY_TIMEOUT = 1

#: kombu 5.7 looks for such messages every second; older ones at the start, and
#: then not for long.
REDIS = (
    f"broker_transport_options={{'visibility_timeout': {VISIBILITY_TIMEOUT}, "
    "'unacked_restore_interval': 1, 'unacked_restore_throttle': 1}"
)


@pytest.fixture(params=("redis", "rabbitmq"))
def start(request, new_transport, start_worker):
    """Start workers on one queue, of the test's own: a killed one leaves messages."""
    transport = new_transport(request.param)
    env = {"CHAOS_CONF": REDIS} if transport.name == "redis" else {}

    def start(*args):
        return start_worker(transport, "chaos", "-c", 20, "--processes", 2, *args, env=env)

    return start


def kill(worker):
    """Kill the main process, and nothing else; wait until all others are gone."""
    os.kill(worker.process.pid, signal.SIGKILL)
    assert worker.wait_exit() == -signal.SIGKILL
    wait_for(lambda: worker.family() == [], lambda: f"these to go: {worker.family()}")


def test_idle(start):
    """Its processes go."""
    with start() as worker:
        kill(worker)


def test_blocked_loop(start):
    """A process whose loop is blocked goes too, and its neighbours."""
    with start() as worker:
        blocking = worker.client.send("block", 600)
        worker.wait_started(blocking)

        kill(worker)


def is_stopped(pid):
    """Whether all threads of *pid* have stopped: only then does the kernel call it stopped."""
    stats = Path(f"/proc/{pid}/task").glob("*/stat")
    return {stat.read_text().rpartition(")")[2].split()[0] for stat in stats} == {"T"}


def test_stopped_process(start, tmp_path):
    """A process that was stopped goes too, and its subprocesses."""
    with start("--processes", 1) as worker:
        [pid] = worker.pool_pids()
        worker.wait_started(worker.client.send("spawn", str(tmp_path / "gate")))
        wait_for(lambda: len(worker.records("sleeper")) == 2, worker.tail)
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: is_stopped(pid), "it stops")

        kill(worker)


def test_in_flight(start, tmp_path):
    """Subprocesses go too, detached ones included; a new worker runs what was not acknowledged."""
    gate = tmp_path / "gate"
    with start() as worker:
        tasks = ("hold", "thread_hold", "spawn")
        early = [worker.client.send(task, str(gate)) for task in tasks for _ in range(3)]
        late = [worker.client.send(f"{task}_late", str(gate)) for task in tasks for _ in range(3)]
        worker.wait_started(*early, *late)
        wait_for(lambda: len(worker.records("sleeper")) == 12, worker.tail)

        kill(worker)

        assert worker.records("ended") == []
        gate.touch()
        visible = time.time() + VISIBILITY_TIMEOUT + 0.5
        wait_for(lambda: time.time() > visible, "time goes by")
        with ending_well(start("-E")) as heir:
            for result in late:
                result.get()
            with Ending(heir, tmp_path) as ending:
                ending.check()
                assert ending.runs(*late) == len(late)
                assert ending.runs(*early) == 0
                assert len(heir.records("sleeper")) == 6
