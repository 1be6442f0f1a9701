"""``celery asyncpool demo``: a worker of its own, many tasks that wait, a small table.

This module is also the app of that worker (``celery -A celery_asyncpool.demo
worker -P asyncpool``), which gets its configuration through an environment
variable. Everything is in a temporary folder; on a broker of the user's it is
in one queue with a name of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import click
from celery import Celery, states
from celery.result import AsyncResult, ResultSet
from kombu.utils.url import maybe_sanitize_url

__all__ = [
    "Flight",
    "Stopped",
    "app",
    "most_in_flight",
    "run",
    "settings_for",
    "table",
]

#: Settings of the app in the worker, as JSON.
SETTINGS_VARIABLE = "ASYNCPOOL_DEMO_SETTINGS"

#: Seconds in which the worker must have run a first task.
START_TIMEOUT = 60.0

#: Seconds without any result after which the demo gives up, on top of a task's own.
RESULT_TIMEOUT = 60.0

#: Seconds in which the worker must be gone when asked; then it is killed.
STOP_TIMEOUT = 15.0

#: Seconds between two looks at a folder: for messages, for results.
POLL_INTERVAL = 0.05

#: Where kombu's Redis transport keeps what was delivered and not acknowledged.
UNACKED_KEYS = ("unacked", "unacked_index", "unacked_mutex")

app = Celery("celery_asyncpool.demo", set_as_current=False)
if SETTINGS_VARIABLE in os.environ:
    app.conf.update(json.loads(os.environ[SETTINGS_VARIABLE]))


@app.task(name="celery_asyncpool.demo.wait")
async def wait(seconds: float) -> tuple[int, float, float]:
    """Await *seconds*; return the pid and the monotonic times of start and end."""
    start = time.monotonic()
    await asyncio.sleep(seconds)
    return os.getpid(), start, time.monotonic()


# What is measured.


@dataclass(frozen=True, slots=True)
class Flight:
    """One task: the process that ran it, and when (monotonic seconds)."""

    pid: int
    start: float
    end: float


def most_in_flight(flights: Iterable[Flight]) -> int:
    """Return how many of *flights* there were at once, at most.

    One that ends when another one starts is not in flight with it.
    """
    changes = []
    for flight in flights:
        changes += [(flight.start, 1), (flight.end, -1)]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def table(flights: list[Flight], wall_time: float) -> str:
    """Return the table that the demo ends with."""
    rows = [
        ("tasks", f"{len(flights):,}"),
        ("processes", f"{len({flight.pid for flight in flights}):,}"),
        ("most in flight at once", f"{most_in_flight(flights):,}"),
        ("wall time", f"{wall_time:.2f} s"),
        ("tasks/s", f"{len(flights) / wall_time:,.0f}"),
    ]
    left = max(len(name) for name, _ in rows)
    right = max(len(value) for _, value in rows)
    return "\n".join(f"{name:{left}}  {value:>{right}}" for name, value in rows)


# The run.


class Stopped(KeyboardInterrupt):
    """The demo was ended by a signal, and has cleaned up."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


def run(
    tasks: int,
    seconds: float,
    processes: int | None = None,
    concurrency: int | None = None,
    broker: str | None = None,
) -> None:
    """Run the demo: a progress bar to stderr, then the table to stdout.

    Raises :exc:`click.ClickException` with one sentence when it cannot be done,
    and :exc:`Stopped` when a signal ended it. Whatever happens, no process,
    file, queue or result is left.
    """
    queue = f"asyncpool-demo-{uuid.uuid4().hex}"
    with _Signals() as signals, _folder() as folder:
        settings = settings_for(broker, folder, queue)
        _configure(settings)
        worker = _Worker(folder, settings)
        sent: list[AsyncResult[Any]] = []
        reached = done = False
        try:
            with signals.may_interrupt():
                _check_broker(broker)
            reached = broker is not None
            worker.start(processes, concurrency or tasks)
            with signals.may_interrupt():
                _run_first_task(worker, signals, sent)
                flights, wall_time = _run_tasks(worker, signals, sent, tasks, seconds)
                click.echo(table(flights, wall_time))
            done = True
        finally:
            worker.tell_to_stop(warm=done)
            try:
                if broker is None:
                    _hasten_stop()
            finally:
                worker.wait_until_gone()
            if reached:
                _clean_broker(queue, sent)
            app.close()


def settings_for(broker: str | None, folder: Path, queue: str) -> dict[str, Any]:
    """Return the Celery settings of a demo on *broker*, by default on files in *folder*.

    Results go to the broker where it can hold them, else to files: worker and
    client are on one machine.
    """
    settings: dict[str, Any] = {
        "broker_url": broker or "filesystem://",
        "broker_connection_timeout": 5,
        "broker_connection_retry": False,
        "broker_connection_retry_on_startup": False,
        "result_backend": _results_for(broker or "filesystem://", folder),
        "result_expires": 3600,
        "task_default_queue": queue,
        "task_publish_retry": False,
        # Its queues would stay on the broker.
        "worker_enable_remote_control": False,
    }
    if broker is None:
        settings["broker_transport_options"] = {
            "data_folder_in": str(folder / "messages"),
            "data_folder_out": str(folder / "messages"),
            "control_folder": str(folder / "control"),
            "polling_interval": POLL_INTERVAL,
        }
    elif _is_redis(broker):
        # By default these are shared by all workers of a Redis, and a worker
        # that stops cold may leave messages there.
        settings["broker_transport_options"] = {
            f"{name}_key": f"{queue}.{name}" for name in UNACKED_KEYS
        }
    return settings


def _is_redis(broker: str) -> bool:
    return broker.startswith(("redis://", "rediss://"))


def _results_for(broker: str, folder: Path) -> str:
    if _is_redis(broker):
        return broker
    if broker.partition("://")[0] in ("amqp", "amqps", "pyamqp"):
        return "rpc://"
    return f"file://{folder / 'results'}"


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="asyncpool-demo-"))
    try:
        for name in ("messages", "control", "results"):
            (folder / name).mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _configure(settings: dict[str, Any]) -> None:
    for name in [name for name in os.environ if _is_of_another_app(name)]:
        del os.environ[name]
    app.conf.update(settings)


def _is_of_another_app(name: str) -> bool:
    """Whether Celery would take the environment variable *name* for a setting or option."""
    others = ("APP", "BROKER_URL", "RESULT_BACKEND", "LOADER", "CONFIG_MODULE")
    return name.startswith("CELERY_") or name in others


def _check_broker(broker: str | None) -> None:
    if broker is None:
        return
    if broker.startswith("memory:"):
        raise click.ClickException(f"{broker} lives in one process; the worker is another one")
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
    except Exception as exc:
        url = maybe_sanitize_url(broker)
        raise click.ClickException(f"cannot connect to the broker {url}: {exc}") from exc


def _run_first_task(worker: _Worker, signals: _Signals, sent: list[AsyncResult[Any]]) -> None:
    """See one task through worker and result backend, so that the clock starts fair."""
    _send(0, sent)
    for _ in _outcomes(worker, signals, sent, START_TIMEOUT):
        return


def _run_tasks(
    worker: _Worker,
    signals: _Signals,
    sent: list[AsyncResult[Any]],
    tasks: int,
    seconds: float,
) -> tuple[list[Flight], float]:
    """Return the flights of *tasks* tasks, and the seconds from first send to last result."""
    flights = []
    with _progress(tasks) as advance:
        started = time.monotonic()
        results = [_send(seconds, sent) for _ in range(tasks)]
        for outcome in _outcomes(worker, signals, results, seconds + RESULT_TIMEOUT):
            flights.append(Flight(*outcome))
            advance()
        wall_time = time.monotonic() - started
    return flights, wall_time


def _send(seconds: float, sent: list[AsyncResult[Any]]) -> AsyncResult[Any]:
    """Send one task; it is in *sent* before it is sent, since a Ctrl-C may come in between."""
    result: AsyncResult[Any] = AsyncResult(str(uuid.uuid4()), app=app)
    sent.append(result)
    wait.apply_async((seconds,), task_id=result.id)
    return result


def _outcomes(
    worker: _Worker, signals: _Signals, results: list[AsyncResult[Any]], patience: float
) -> Iterator[tuple[int, float, float]]:
    """Yield what each of *results* returned, as they come in.

    Gives up when a signal has come, when the worker has ended, when a task has
    failed, and when nothing has come for *patience* seconds.
    """
    backend: Any = app.backend
    left = {result.id: result for result in results}
    last = time.monotonic()

    def check() -> None:
        signals.check()
        worker.check()
        if time.monotonic() - last > patience:
            raise click.ClickException(
                f"no result for {patience:.0f} s, {len(left)} still to come; "
                f"the end of the worker's log:\n{worker.log_tail()}"
            )

    while left:
        for task_id, meta in backend.iter_native(
            ResultSet(list(left.values()), app=app), interval=POLL_INTERVAL, on_interval=check
        ):
            if left.pop(task_id, None) is None:
                continue
            if meta["status"] != states.SUCCESS:
                raise click.ClickException(f"a task failed: {meta['result']!r}")
            last = time.monotonic()
            yield tuple(meta["result"])


def _hasten_stop() -> None:
    """Send two messages to a worker that was told to stop.

    On a transport without a hub Celery waits up to 2 s for a message before it
    looks whether it should stop, and up to 2 s for another one before it does.
    """
    for _ in range(2):
        wait.delay(0)


def _clean_broker(queue: str, sent: list[AsyncResult[Any]]) -> None:
    """Delete our queue and results on a broker of the user's; say so if that fails."""
    try:
        with app.connection_for_write() as connection:
            declared = app.amqp.queues[queue](connection.default_channel)
            declared.declare()  # a virtual channel deletes only what it knows
            declared.delete()
            declared.exchange.delete()
            if _is_redis(app.conf.broker_url):
                channel: Any = connection.default_channel
                channel.client.delete(*(f"{queue}.{name}" for name in UNACKED_KEYS))
        if app.conf.result_backend != "rpc://":  # its results are messages, already read
            for result in sent:
                result.forget()
    except Exception as exc:
        click.echo(f"could not delete the queue {queue}: {exc}", err=True)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], object]]:
    """Show a progress bar; yields what moves it by one."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
    except ImportError:
        with click.progressbar(length=total, label="tasks", file=sys.stderr) as bar:
            yield lambda: bar.update(1)
        return
    columns = ("tasks", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("tasks", total=total)
        yield lambda: progress.advance(task)


class _Worker:
    """The worker: an ordinary ``celery worker`` in a session of its own.

    No Ctrl-C reaches it: the demo stops it.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder = folder
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        #: Readable (end of file) when the worker and all its processes are gone.
        self._alive_fd = -1

    def start(self, processes: int | None, concurrency: int) -> None:
        command = [sys.executable, "-m", "celery", "-A", app.main, "worker", "-P", "asyncpool"]
        command += ["-c", str(concurrency), "--loglevel", "INFO"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        if processes is not None:
            command += ["--processes", str(processes)]
        self._alive_fd, inherited = os.pipe()
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    cwd=self._folder,
                    env=self._environ(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[inherited],
                    start_new_session=True,
                )
        finally:
            os.close(inherited)

    def check(self) -> None:
        """Raise when the worker has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise click.ClickException(
                f"the worker has ended with exit code {self._process.returncode}; "
                f"the end of its log:\n{self.log_tail()}"
            )

    def log_tail(self) -> str:
        """The last lines of the worker's log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])

    def tell_to_stop(self, *, warm: bool) -> None:
        """Tell the worker to stop; not *warm*: tasks that still run are cancelled."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM if warm else signal.SIGQUIT)

    def wait_until_gone(self) -> None:
        """Wait until the worker and its processes are gone; kill it when it takes too long."""
        if self._process is not None:
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._alive_fd >= 0:
            select.select([self._alive_fd], [], [], STOP_TIMEOUT)
            os.close(self._alive_fd)
            self._alive_fd = -1

    @property
    def _log(self) -> Path:
        return self._folder / "worker.log"

    def _environ(self) -> dict[str, str]:
        environ = {
            **os.environ,
            SETTINGS_VARIABLE: json.dumps(self._settings),
        }
        if path := os.environ.get("PYTHONPATH"):
            # It may be relative to here, and the worker runs in its folder.
            environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, path.split(os.pathsep)))
        return environ


class _Signals:
    """Signals end the demo only where it can be left: not while a process starts or stops."""

    def __init__(self) -> None:
        self._caught: int | None = None
        self._may_interrupt = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._previous[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(self, *args: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    @contextmanager
    def may_interrupt(self) -> Iterator[None]:
        """Within it a signal raises :exc:`Stopped`, one that came before it too."""
        self._may_interrupt = True
        try:
            self.check()
            yield
            self.check()
        except BaseException:
            # Whatever became of it on its way through other people's `finally`.
            if self._caught is not None:
                raise Stopped(self._caught) from None
            raise
        finally:
            self._may_interrupt = False

    def check(self) -> None:
        """Raise :exc:`Stopped` if a signal has come.

        What its handler raises is lost when it interrupts a ``__del__``.
        """
        if self._caught is not None:
            raise Stopped(self._caught)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._caught = signum
        if self._may_interrupt:
            raise Stopped(signum)
