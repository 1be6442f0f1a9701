"""``celery asyncpool demo``: its numbers, its whole run, and what it leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from celery_asyncpool.demo import Flight, Stopped, _Signals, most_in_flight, settings_for, table

from .servers import RabbitMQServer, RedisServer

#: Seconds after which a demo that hangs is an error.
PATIENCE = 180.0


# The pure functions.


@pytest.mark.parametrize(
    ("times", "most"),
    [
        ([], 0),
        ([(0, 1)], 1),
        ([(0, 1), (1, 2), (2, 3)], 1),  # one after the other
        ([(0, 2), (1, 3), (2, 4)], 2),  # never three
        ([(0, 9), (1, 2), (3, 4), (5, 6)], 2),
        ([(0, 9), (1, 9), (2, 9)], 3),
        ([(2, 9), (0, 9), (1, 9)], 3),  # in any order
    ],
)
def test_most_in_flight_is_the_largest_overlap(times: list[tuple[int, int]], most: int) -> None:
    """It counts tasks between their start and end; touching ends do not overlap."""
    assert most_in_flight(Flight(1, start, end) for start, end in times) == most


def test_table_counts_tasks_processes_and_overlap() -> None:
    """The table says what the flights say, and divides tasks by the wall time."""
    flights = [Flight(pid=i % 2, start=0.0, end=1.0) for i in range(1000)]

    assert table(flights, wall_time=1.25).splitlines() == [
        "tasks                    1,000",
        "processes                    2",
        "most in flight at once   1,000",
        "wall time               1.25 s",
        "tasks/s                    800",
    ]


@pytest.mark.parametrize(
    ("broker", "results"),
    [
        (None, "file:///f/results"),
        ("redis://h:1/2", "redis://h:1/2"),
        ("rediss://h:1/2", "rediss://h:1/2"),
        ("amqp://h//", "rpc://"),
        ("sqs://", "file:///f/results"),
    ],
)
def test_results_go_where_the_broker_can_hold_them(broker: str | None, results: str) -> None:
    """Redis and AMQP brokers take the results too; for others there are files."""
    assert settings_for(broker, Path("/f"), "q")["result_backend"] == results


def test_embedded_broker_stays_in_the_folder() -> None:
    """With no broker given, messages and bindings are files in the demo's folder."""
    options = settings_for(None, Path("/f"), "q")["broker_transport_options"]

    folders = {name: value for name, value in options.items() if "folder" in name}
    assert len(folders) == 3
    assert all(value.startswith("/f/") for value in folders.values())


def test_messages_on_redis_are_kept_apart_from_other_workers() -> None:
    """What is delivered and not acknowledged has keys of the demo's own."""
    options = settings_for("redis://h", Path("/f"), "q")["broker_transport_options"]

    assert options == {
        "unacked_key": "q.unacked",
        "unacked_index_key": "q.unacked_index",
        "unacked_mutex_key": "q.unacked_mutex",
    }


# The whole command.


class Demo:
    """The command in a folder for its temporary files, and with the folder `here` as cwd."""

    def __init__(self, folder: Path) -> None:
        self.here = folder / "here"
        self.temporary = folder / "temporary"
        self.here.mkdir()
        self.temporary.mkdir()
        self.environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CELERY_", "COV_", "PYTEST_"))
        }
        self.environ |= {"TMPDIR": str(self.temporary), "PYTHONDONTWRITEBYTECODE": "1"}
        self.process: subprocess.Popen[str] | None = None

    def start(self, *args: str) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            # Not `-m celery`: that would import what lies in the current folder.
            [str(Path(sys.executable).with_name("celery")), "asyncpool", "demo", *args],
            cwd=self.here,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A shell that starts us in the background has it ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        return self.process

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*args)
        output, errors = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def wait_for(self, pattern: str) -> None:
        """Wait until a file matches; the demo's folder is the one in its TMPDIR."""
        deadline = time.monotonic() + PATIENCE
        while not any(self.temporary.glob(pattern)):
            assert self.process is not None
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, f"no {pattern}"
            time.sleep(0.01)

    def assert_nothing_left(self) -> None:
        assert list(self.temporary.iterdir()) == []
        assert list(self.here.iterdir()) == []
        assert self.processes() == []

    def processes(self) -> list[int]:
        """Processes with our TMPDIR, or the worker's below it, in their environment."""
        marker = f"TMPDIR={self.temporary}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # gone meanwhile, or somebody else's
            if any(variable.startswith(marker) for variable in variables):
                found.append(int(entry.name))
        return found


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """A demo that is killed, with its worker, if the test has left it running."""
    demo = Demo(tmp_path)
    yield demo
    for pid in demo.processes():
        os.kill(pid, signal.SIGKILL)
    if demo.process is not None:
        demo.process.communicate()


def rows(output: str) -> dict[str, str]:
    """The rows of the table."""
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in output.splitlines())


@pytest.mark.parametrize("rich", [True, False])
def test_demo_ends_with_its_table(demo: Demo, rich: bool) -> None:
    """All tasks are in flight at once, in as many processes as asked; nothing is left."""
    if rich:
        pytest.importorskip("rich")
    else:
        shadow = demo.here.parent / "without-rich"
        shadow.mkdir()
        (shadow / "rich.py").write_text("raise ImportError('not installed')\n")
        demo.environ["PYTHONPATH"] = str(shadow)

    done = demo.run("--tasks", "40", "--seconds", "4", "--processes", "3")

    assert done.returncode == 0, done.stderr
    table = rows(done.stdout)
    assert list(table) == ["tasks", "processes", "most in flight at once", "wall time", "tasks/s"]
    assert table["tasks"] == "40"
    assert table["processes"] == "3"
    assert table["most in flight at once"] == "40"
    assert 4.0 <= float(table["wall time"].removesuffix(" s")) < 90
    assert "Traceback" not in done.stderr
    demo.assert_nothing_left()


def test_concurrency_bounds_the_tasks_in_flight(demo: Demo) -> None:
    """`--concurrency` is the worker's -c: no more tasks than that run at once."""
    done = demo.run("--tasks", "20", "--seconds", "0.2", "--concurrency", "5", "--processes", "1")

    assert rows(done.stdout)["most in flight at once"] == "5"
    demo.assert_nothing_left()


def test_environment_and_folder_of_another_project_do_not_matter(demo: Demo) -> None:
    """Neither variables that Celery reads nor modules in the current folder get in."""
    module = demo.here / "celery_broken.py"
    module.write_text("raise SystemExit('imported by mistake')\n")
    (demo.here / "celery.py").write_text("raise SystemExit('imported by mistake')\n")
    demo.environ |= {
        "CELERY_BROKER_URL": "amqp://127.0.0.1:1//",
        "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/0",
        "CELERY_WORKER_CONCURRENCY": "1",
        "CELERY_WORKER_POOL": "solo",
    }

    done = demo.run("--tasks", "10", "--seconds", "3")

    assert done.returncode == 0, done.stderr
    assert rows(done.stdout)["most in flight at once"] == "10"


SLOW_DISK = """
import builtins, io, os, time

fast_open = builtins.open

def slow_open(file, mode="r", *args, **kwargs):
    opened = fast_open(file, mode, *args, **kwargs)
    if "w" in mode and b"/asyncpool-demo-" in os.fsencode(file):
        time.sleep(0.1)
    return opened

builtins.open = io.open = slow_open
"""


def test_slow_disk(demo: Demo) -> None:
    """No message or result is read before it is written, however long that takes."""
    site = demo.here.parent / "slow-disk"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SLOW_DISK)
    demo.environ["PYTHONPATH"] = str(site)

    done = demo.run("--tasks", "10", "--seconds", "0.1")

    assert done.returncode == 0, done.stderr
    assert rows(done.stdout)["tasks"] == "10"
    demo.assert_nothing_left()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "moment",
    [
        "asyncpool-demo-*",  # its first file: nothing has been started
        "asyncpool-demo-*/worker.log",  # the worker starts
        "asyncpool-demo-*/results/celery-task-meta-*",  # the tasks are being sent
    ],
)
def test_signal_stops_it_cleanly(demo: Demo, signum: signal.Signals, moment: str) -> None:
    """Ctrl-C at any time: no traceback, no process, no file, and a code that says so."""
    process = demo.start("--tasks", "200", "--seconds", "60")
    demo.wait_for(moment)

    os.killpg(process.pid, signum)
    output, errors = process.communicate(timeout=PATIENCE)

    assert process.returncode == 128 + signum
    assert output == ""
    assert errors.endswith(f"stopped by {signum.name}, nothing is left\n")
    assert "Traceback" not in errors
    demo.assert_nothing_left()


def test_worker_that_does_not_start_is_said_with_its_log(demo: Demo) -> None:
    """The error has the worker's exit code and what it had to say."""
    demo.environ["USE_FAST_LOCALS"] = "1"

    done = demo.run()

    assert done.returncode == 1
    assert "Error: the worker has ended with exit code 1; the end of its log:" in done.stderr
    assert "USE_FAST_LOCALS must not be set" in done.stderr
    assert "Traceback" not in done.stderr
    demo.assert_nothing_left()


def test_broker_that_cannot_be_reached_is_said_without_its_password(demo: Demo) -> None:
    """Nothing is started where the broker does not answer."""
    done = demo.run("--broker", "redis://:secret@127.0.0.1:1/0")

    assert done.returncode == 1
    assert "Error: cannot connect to the broker redis://:**@127.0.0.1:1/0: " in done.stderr
    assert "secret" not in done.stderr
    demo.assert_nothing_left()


def test_broker_inside_one_process_is_refused(demo: Demo) -> None:
    """The worker is a process of its own, so memory:// cannot carry its tasks."""
    done = demo.run("--broker", "memory://")

    assert done.returncode == 1
    assert done.stderr == ("Error: memory:// lives in one process; the worker is another one\n")


# On a broker of the user's.


def keys(url: str) -> set[str]:
    with Redis.from_url(url, decode_responses=True) as client:
        return set(client.keys())


def queues_and_exchanges(server: RabbitMQServer) -> set[str]:
    return {*server.ctl("list_queues").splitlines(), *server.ctl("list_exchanges").splitlines()}


def test_redis_broker_is_left_as_it_was(demo: Demo, redis_server: RedisServer) -> None:
    """On Redis the results go there too, and no key is left."""
    url = f"{redis_server.url}/9"

    done = demo.run("--broker", url, "--tasks", "20", "--seconds", "3")

    assert done.returncode == 0, done.stderr
    assert rows(done.stdout)["most in flight at once"] == "20"
    assert keys(url) == set()
    demo.assert_nothing_left()


def test_interrupted_demo_leaves_its_broker_as_it_was(
    demo: Demo, redis_server: RedisServer
) -> None:
    """Queued, running and finished tasks: nothing of them stays on the broker."""
    url = f"{redis_server.url}/9"
    process = demo.start("--broker", url, "--tasks", "500", "--seconds", "60")
    deadline = time.monotonic() + PATIENCE
    while not any(key.endswith(".unacked") for key in keys(url)):
        assert time.monotonic() < deadline
        time.sleep(0.02)

    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)

    assert process.returncode == 130, errors
    assert keys(url) == set()
    demo.assert_nothing_left()


class RaisesOnDelete:
    """Interrupted, in its ``__del__``, by a signal."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_signal_in_a_finalizer_ends_the_demo() -> None:
    """Python swallows what a handler raises there."""
    with _Signals() as signals, pytest.raises(Stopped), signals.may_interrupt():
        RaisesOnDelete()
        signals.check()


def test_rabbitmq_broker_is_left_as_it_was(demo: Demo, rabbitmq_server: RabbitMQServer) -> None:
    """On RabbitMQ results come by rpc://, and no queue or exchange is left."""
    before = queues_and_exchanges(rabbitmq_server)

    done = demo.run("--broker", rabbitmq_server.url, "--tasks", "20", "--seconds", "3")

    assert done.returncode == 0, done.stderr
    assert rows(done.stdout)["most in flight at once"] == "20"
    assert queues_and_exchanges(rabbitmq_server) == before
    demo.assert_nothing_left()
