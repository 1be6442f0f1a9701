"""``python -m benchmarks.playwright_pages``: page tasks per second, and memory per page.

One shared browser per process in this pool against one browser per task on
prefork, with the same number of pages at once. Each page answers after a delay,
as pages do. Memory is the proportional set size of the worker with all that it
has started, at its highest while the tasks run, over the number of pages at once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .redis_server import private_redis

PROC = Path("/proc")
PATIENCE = 120.0

CHROMIUM_ARGS = (
    *(("--no-sandbox",) if os.geteuid() == 0 else ()),
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run page tasks: the task, and the options of its worker."""

    task: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run has shown."""

    rate: float
    idle: float
    highest: float


def main() -> int:
    """Run all ways in turns; return the exit code."""
    args = _parse_args()
    pages = str(args.pages)
    ways = {
        "asyncpool, shared browser": Way(
            "shared", ("-P", "asyncpool", "-c", pages, "--processes", str(args.processes))
        ),
        "prefork, browser per task": Way("own", ("-P", "prefork", "-c", pages)),
    }
    print(f"{args.tasks} tasks, {pages} pages at once, each answers after {args.delay:g} s\n")
    print(f"{'':<28}{'tasks/s':>9}{'MiB idle':>10}{'MiB highest':>13}{'MiB per page':>14}")
    with private_redis() as redis_url, _web_server(args.delay) as url:
        for _ in range(args.rounds):
            for name, way in ways.items():
                got = _run(way, redis_url, url, args.tasks)
                print(
                    f"{name:<28}{got.rate:>9.1f}{got.idle:>10.0f}{got.highest:>13.0f}"
                    f"{got.highest / args.pages:>14.1f}",
                    flush=True,
                )
    return 0


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.playwright_pages")
    parser.add_argument("--pages", type=int, default=20, help="pages at once (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="of asyncpool (%(default)s)")
    parser.add_argument("--tasks", type=int, default=100, help="tasks per run (%(default)s)")
    parser.add_argument("--delay", type=float, default=1.0, help="of each page, s (%(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each (%(default)s)")
    return parser.parse_args()


def _run(way: Way, redis_url: str, url: str, tasks: int) -> Figures:
    """Start a worker, run *tasks*, and stop it; each must give the right title."""
    with _worker(way, redis_url) as (process, app):
        task = app.tasks[f"benchmarks.playwright_app.{way.task}"]
        idle = _memory(process.pid)
        with _Highest(process.pid) as memory:
            start = time.perf_counter()
            results = [task.delay(url) for _ in range(tasks)]
            titles = {result.get(timeout=PATIENCE) for result in results}
            seconds = time.perf_counter() - start
        if titles != {"page"}:
            raise SystemExit(f"wrong titles: {titles}")
    return Figures(tasks / seconds, idle, memory.value)


@contextmanager
def _worker(way: Way, redis_url: str) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
    os.environ["CHROMIUM"] = shutil.which("chromium") or shutil.which("google-chrome") or ""
    os.environ["CHROMIUM_ARGS"] = shlex.join(CHROMIUM_ARGS)
    os.environ["CELERY_BROKER_URL"] = os.environ["CELERY_RESULT_BACKEND"] = redis_url
    from .playwright_app import app

    app.conf.update(broker_url=redis_url, result_backend=redis_url)
    command = (sys.executable, "-m", "celery", "-A", "benchmarks.playwright_app", "worker")
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            (*command, *way.options, "-l", "WARNING"),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + PATIENCE
            while not app.control.ping(timeout=0.5, limit=1):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(log.read().decode(errors="replace"))
            yield process, app
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)


class _Highest:
    """The highest memory, in MiB, of the process *pid* with its descendants, in the block."""

    def __init__(self, pid: int) -> None:
        self.value = 0.0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> _Highest:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.5):
            self.value = max(self.value, _memory(self._pid))


def _memory(pid: int) -> float:
    """The proportional set size of *pid* with its descendants, in MiB."""
    parents = dict(_parents())
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(map(_pss, family)) / 1024


def _parents() -> Iterator[tuple[int, int]]:
    for name in filter(str.isdecimal, os.listdir(PROC)):
        try:
            fields = (PROC / name / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # gone meanwhile
        yield int(name), int(fields[1])


def _pss(pid: int) -> int:
    """In KiB; 0 when it has gone."""
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


class _Page(BaseHTTPRequestHandler):
    delay: float

    def do_GET(self) -> None:
        found = self.path == "/"  # a browser asks for an icon, too
        time.sleep(self.delay if found else 0)
        try:
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>page</title>" + b"<p>text</p>" * 1000)
        except ConnectionError:
            return  # the page has been closed

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def _web_server(delay: float) -> Iterator[str]:
    handler = type("Page", (_Page,), {"delay": delay})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    sys.exit(main())
