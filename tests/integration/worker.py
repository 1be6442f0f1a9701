"""A real `celery worker` in a subprocess, and a client for it."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from apps import atomic_files, recording
from celery import Celery

atomic_files.install()

HERE = Path(__file__).parent

#: Seconds that anything may take on a slow and busy machine before it is an error.
PATIENCE = 60.0


def wait_for(condition, what, timeout=PATIENCE):
    """Return the first true value of *condition*; fail with *what* after *timeout* s."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {_text(what)}")
        time.sleep(0.02)


def _text(what):
    try:
        return what() if callable(what) else what
    except Exception as exc:
        return f"{what}, which cannot be told: {exc!r}"


@dataclass
class Transport:
    """Where messages and results go."""

    name: str
    broker: str
    backend: str
    folder: Path | None = None
    queue: str = field(default_factory=lambda: f"test-{uuid.uuid4().hex[:8]}")

    def environment(self):
        variables = {
            "ASYNCPOOL_TEST_BROKER": self.broker,
            "ASYNCPOOL_TEST_BACKEND": self.backend,
            "ASYNCPOOL_TEST_QUEUE": self.queue,
        }
        if self.folder is not None:
            variables["ASYNCPOOL_TEST_FOLDER"] = str(self.folder)
        return variables


class Client:
    """Sends the tasks of one app module by name."""

    def __init__(self, transport, module):
        self.module = module
        # kombu keeps one pool for all that connect in the same way: without a name
        # of its own a client gets connections that an earlier test has cut.
        self._own = {"client_properties": {"connection_name": uuid.uuid4().hex}}
        self.app = Celery(
            f"client-{module}",
            broker=transport.broker,
            backend=transport.backend,
            set_as_current=False,
        )
        self.app.conf.update(
            accept_content=["json", "pickle"],
            task_default_queue=transport.queue,
            result_expires=600,
            broker_heartbeat=0,  # nobody beats for a connection that waits in the pool
            broker_connection_timeout=PATIENCE,
            broker_transport_options=self._own,
        )
        if transport.folder is not None:
            self.app.conf.broker_transport_options = {
                "data_folder_in": f"{transport.folder}/queue",
                "data_folder_out": f"{transport.folder}/queue",
                "control_folder": f"{transport.folder}/control",
                "processed_folder": f"{transport.folder}/processed",
                "polling_interval": 0.02,
            }

    def s(self, task, /, *args, **kwargs):
        """A signature of *task*."""
        return self.app.signature(f"{self.module}.{task}", args=args, kwargs=kwargs)

    def send(self, task, *args, **options):
        """Send *task* with *args*; *options* as for apply_async."""
        return self.s(task, *args).apply_async(**options)

    def close(self):
        # A test that has set options of its own may share the pool with others.
        if self.app.conf.broker_transport_options == self._own:
            self.app.pool.force_close_all()
        self.app.close()


class Events:
    """Collects, in a thread, the events of all workers on the broker of *app*."""

    def __init__(self, app):
        self.seen = []
        self._connection = app.connection_for_read()
        self._receiver = app.events.Receiver(self._connection, handlers={"*": self.seen.append})
        self._ready = threading.Event()
        self._receiver.on_consume_ready = lambda *args, **kwargs: self._ready.set()
        self._thread = threading.Thread(target=self._receiver.capture, daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(PATIENCE), "no connection for events"
        return self

    def __exit__(self, *exc_info):
        self._receiver.should_stop = True
        self._thread.join(PATIENCE)
        self._connection.release()

    def ends(self):
        """How often each kind of end was announced for each task."""
        kinds = ("task-succeeded", "task-failed", "task-revoked")
        return Counter((e["uuid"], e["type"]) for e in list(self.seen) if e["type"] in kinds)


class Worker:
    """One worker on *transport*, running the app in ``apps/<module>.py``.

    Use it as a context manager: at the end it is stopped with SIGTERM, and must
    exit with 0 and leave no process behind. When the block has raised it is
    killed, with all its processes: its tasks may wait for what was still to come.
    """

    def __init__(
        self, transport, module, tmp_path, *args, env=None, selection=("-P", "asyncpool")
    ):
        self.transport = transport
        self.module = f"apps.{module}"
        self.hostname = f"{transport.name}-{uuid.uuid4().hex[:6]}@test"
        self.log_path = tmp_path / f"worker-{uuid.uuid4().hex[:6]}.log"
        self.record_path = tmp_path / f"record-{uuid.uuid4().hex[:6]}.jsonl"
        self.command = [
            *(sys.executable, "-m", "celery", "-A", self.module, "worker"),
            *selection,
            *("-l", "INFO", "-n", self.hostname, "-Q", transport.queue, "--without-mingle"),
            *map(str, args),
        ]
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("CELERY")},
            **transport.environment(),
            recording.VARIABLE: str(self.record_path),
            "PYTHONPATH": str(HERE),
            "PYTHONUNBUFFERED": "1",
            "C_FORCE_ROOT": "1",  # a test with pickle, perhaps as root
            **(env or {}),
        }
        self.client = Client(transport, self.module)
        self.process = None
        self.exit_code = None
        self._records = recording.Reader(self.record_path)

    def __enter__(self):
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.kill_everything()
            raise
        return self

    def __exit__(self, exc_type, exc, traceback):
        try:
            if exc is None:
                self.stop()
            else:
                exc.add_note(f"the end of the worker's log:\n{self.tail()}")
        finally:
            self.kill_everything()
            self.client.close()

    def stop(self):
        """Stop it with SIGTERM, unless it has ended, and see that nothing is left."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            wait_for(self._has_ended, lambda: f"the worker's end:\n{self.tail()}")
            assert self.exit_code == 0, f"exit code {self.exit_code}:\n{self.tail()}"
        wait_for(lambda: not self.family(), lambda: f"left behind: {self.family()}")

    def _has_ended(self):
        if self.transport.name == "filesystem":
            # Celery looks whether it should stop when a message comes, or after 2 s.
            self.client.app.control.broadcast("ping", destination=[self.hostname])
        try:
            self.exit_code = self.process.wait(0.2)
        except subprocess.TimeoutExpired:
            return False
        return True

    def renew_client(self, *results):
        """Use new connections, since a test has cut the old ones; return *results* on them."""
        self.client = Client(self.transport, self.module)
        return [self.client.app.AsyncResult(result.id) for result in results]

    def start(self):
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=HERE,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def restart(self):
        """Start it again after its exit: the same name, queue, log and record."""
        count = self.log().count(" ready.")
        self.start()
        self.wait_ready(count + 1)

    def wait_ready(self, count=1):
        self.wait_log(" ready.", count)
        count = len(self.pool_pids())
        wait_for(lambda: len(self.up_processes()) == count, self.tail)

    def wait_exit(self, timeout=PATIENCE):
        """Wait until the worker has exited by itself; return its exit code."""
        try:
            self.exit_code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker did not exit:\n{self.tail()}") from None
        return self.exit_code

    def wait_log(self, text, count=1):
        def found():
            ended = self.process.poll() is not None
            if self.log().count(text) >= count:
                return True
            assert not ended, f"the worker has exited:\n{self.tail()}"
            return False

        wait_for(found, lambda: f"{text!r} in the log:\n{self.tail()}")

    def log(self):
        return self.log_path.read_text(errors="replace")

    def tail(self):
        return "\n".join(self.log().splitlines()[-60:])

    def records(self, what=None, **fields):
        """What the app has recorded, filtered."""
        return [
            line
            for line in self._records.read()
            if (what is None or line["what"] == what)
            and all(line.get(key) == value for key, value in fields.items())
        ]

    def count(self, what, result):
        """How often the app has recorded *what* of the task of *result*."""
        return len(self.records(what, id=result.id))

    def wait_started(self, *results, times=1):
        """Wait until the body of each task has started, *times* in all, and the worker knows it.

        Its process says so first, but the worker may be waiting for a CPU.
        """

        def known():
            waiting = {request["id"] for request in self.inspect("reserved")}
            return waiting.isdisjoint(result.id for result in results)

        wait_for(lambda: all(self.count("started", r) >= times for r in results), self.tail)
        wait_for(known, self.tail)

    def wait_settled(self, *results):
        """Wait until the worker knows that each of the tasks has ended, and has acked it.

        The task's process stores the result first.
        """

        def settled():
            known = {
                request["id"] for what in ("active", "reserved") for request in self.inspect(what)
            }
            return known.isdisjoint(result.id for result in results)

        wait_for(settled, self.tail)

    def inspect(self, what):
        """The worker's answer to `celery inspect <what>`."""

        def ask():
            assert self.process.poll() is None, f"the worker has exited:\n{self.tail()}"
            inspect = self.client.app.control.inspect([self.hostname], timeout=5, limit=1)
            answers = getattr(inspect, what)() or {}
            return [answers[self.hostname]] if self.hostname in answers else None

        [answer] = wait_for(ask, lambda: f"an answer to inspect {what}:\n{self.tail()}")
        return answer

    def stats(self):
        """The worker's own statistics, as `celery inspect stats` shows them."""
        return self.inspect("stats")

    def pool(self):
        return self.stats()["pool"]

    def pool_pids(self):
        return self.pool()["processes"]

    def up_processes(self):
        processes = self.pool()["worker-processes"]
        return {int(pid): info for pid, info in processes.items() if info["state"] == "up"}

    def slots_in_use(self):
        return sum(info["slots-in-use"] for info in self.pool()["worker-processes"].values())

    def family(self):
        """Pids of all live processes that descend from this worker, however detached."""
        marker = f"{recording.VARIABLE}={self.record_path}".encode()
        pids = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and marker in (entry / "environ").read_bytes().split(b"\0"):
                    pids.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return pids

    def kill_everything(self):
        wait_for(self._kill_family, lambda: f"survivors of SIGKILL: {self.family()}")
        if self.process is not None:
            self.process.wait(PATIENCE)

    def _kill_family(self):
        """Kill all that there are; whether there were none. One may just be forking another."""
        family = self.family()
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not family
