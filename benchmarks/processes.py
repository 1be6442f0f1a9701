"""The processes of one run: a worker, its client, and helpers that end with standard input."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from . import procfs

__all__ = ["BenchmarkError", "ClientProcess", "Worker", "helper"]

#: The folder of the package: where ``-A benchmarks.app`` is found.
ROOT = Path(__file__).parent.parent
STOP_TIMEOUT = 60.0
#: Seconds that a command of the client may take.
ANSWER_TIMEOUT = 180.0


class BenchmarkError(Exception):
    """Something was not exactly right: there is no number."""


class Worker:
    """A worker and all its processes; the block's end is its warm shutdown."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self._command = command
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        self._log: IO[bytes] = tempfile.TemporaryFile()
        self.started_at = 0.0

    def __enter__(self) -> Worker:
        self.started_at = time.monotonic()
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return self

    def __exit__(self, exc_type: object, *details: object) -> None:
        with self._log:
            family = procfs.tree(self.pid)
            code = self._stop(STOP_TIMEOUT if exc_type is None else 5.0)
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if exc_type is None and code != 0:
                raise self.error(f"ended with exit code {code}")

    def _stop(self, timeout: float) -> int:
        self._process.terminate()
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    @property
    def pid(self) -> int:
        """The main process."""
        return self._process.pid

    def check_alive(self) -> None:
        """Raise an error if the worker has ended."""
        if self._process.poll() is not None:
            raise self.error(f"ended early with exit code {self._process.returncode}")

    def error(self, what: str) -> BenchmarkError:
        """Return an error that says *what* the worker did, with the end of its log."""
        self._log.seek(0)
        log = self._log.read().decode(errors="replace")[-3000:]
        return BenchmarkError(f"the worker {what}; the end of its log:\n{log}")


class ClientProcess:
    """The other end of :mod:`.client`: a method for each command."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> ClientProcess:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.communicate()

    def send(self, do: str, **arguments: Any) -> None:
        """Give a command; :meth:`answer` waits for its end."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Return what the command returned, or raise what it raised."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], ANSWER_TIMEOUT)[0]:
            raise BenchmarkError(f"the client did not answer within {ANSWER_TIMEOUT:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError("the client ended early")
        reply = json.loads(line)
        if "error" in reply:
            raise BenchmarkError(f"the client failed: {reply['error']}")
        return reply["ok"]

    def call(self, do: str, **arguments: Any) -> Any:
        """Give a command and wait for its answer."""
        self.send(do, **arguments)
        return self.answer()


@contextlib.contextmanager
def helper(module: str, *args: object) -> Iterator[int]:
    """Run ``python -m benchmarks.<module>``, which prints its port; yield the port."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{module}", *map(str, args)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.strip():
            raise BenchmarkError(f"{module} did not start")
        yield int(line)
    finally:
        process.kill()
        process.communicate()
