"""Sessions of pytest: one for each file of Celery's tests, some side by side.

Each has its own worker, and its own Redis: what the tests of one file leave
there, and in the process, is not met by those of another.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..servers import RabbitMQServer, RedisServer

REPOSITORY = Path(__file__).parents[2]
POOLS = {"asyncpool": "celery_asyncpool:Pool", "prefork": "prefork"}

#: Seconds for one test, where it has no limit of its own.
TEST_TIMEOUT = 300

#: Exit codes of pytest that say that it came to its end.
COMPLETE = (0, 1, 5)


@dataclass(frozen=True)
class Setup:
    """What all sessions have in common.

    Attributes:
        source: the folder of Celery's tests.
        pool: a key of :data:`POOLS`.
        folder: for what the sessions write.
        selection: a file that names the tests to run; None: all.
        arguments: more of pytest's.
        rabbitmq: the broker, where it is not Redis.
    """

    source: Path
    pool: str
    folder: Path
    selection: Path | None
    arguments: list[str]
    rabbitmq: RabbitMQServer | None


class Session:
    """The tests of *file*; `close` ends what they have started."""

    def __init__(self, setup: Setup, file: str) -> None:
        self.file = file
        self.record = setup.folder / f"{Path(file).stem}.jsonl"
        self.record.touch()
        self.log = setup.folder / f"{Path(file).stem}.log"
        self.began = time.monotonic()
        self.code: int | None = None
        self._redis = RedisServer()
        self._process: subprocess.Popen[bytes] | None = None
        self._setup = setup

    def __enter__(self) -> Self:
        self._redis.start()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self._setup.source,
                env=self._environ(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def has_ended(self) -> bool:
        """Whether pytest has exited, with `code`."""
        assert self._process is not None
        self.code = self._process.poll()
        return self.code is not None

    def __exit__(self, *args: object) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._redis.close()

    def _command(self) -> list[str]:
        setup = self._setup
        command = [sys.executable, "-m", "pytest", self.file, "--tb=short", "-ra"]
        command += ["-p", "celery.contrib.pytest", "-p", "tests.upstream.plugin"]
        command += ["-p", "no:cacheprovider", "--timeout", str(TEST_TIMEOUT)]
        command += ["--upstream-pool", POOLS[setup.pool]]
        command += ["--upstream-record", str(self.record)]
        if setup.pool == "prefork":
            command += ["-p", "no:celery_asyncpool"]
        if setup.selection is not None:
            command += ["--upstream-selection", str(setup.selection)]
        return [*command, *setup.arguments]

    def _environ(self) -> dict[str, str]:
        broker = self._redis.url
        if self._setup.rabbitmq is not None:
            broker = self._setup.rabbitmq.add_vhost(Path(self.file).stem)
        return {
            **os.environ,
            # Their subprocesses run the `celery` of this environment.
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "PYTHONPATH": str(REPOSITORY),
            # Without it tracebacks are parsed, in Python 3.11: the interpreter cannot
            # parse in two threads at once, and pytest ends with an internal error.
            "PYTHONNODEBUGRANGES": "1",
            "WORKER_LOGLEVEL": "INFO",  # tests read the log
            "TEST_BROKER": broker,
            "TEST_BACKEND": self._redis.url,
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(self._redis.port),
        }


def run_all(setup: Setup, files: list[str], jobs: int, seconds: float) -> Iterator[Session]:
    """Run the tests of *files*, so many files at once; yield each session when it has ended.

    After *seconds*, those that run are ended, with a `code` of None, and no other begins.
    """
    deadline = time.monotonic() + seconds
    waiting = list(files)
    running: dict[Session, contextlib.ExitStack] = {}
    with contextlib.ExitStack() as everything:
        while waiting or running:
            if waiting and len(running) < jobs:
                stack = everything.enter_context(contextlib.ExitStack())
                running[stack.enter_context(Session(setup, waiting.pop(0)))] = stack
                continue
            is_late = time.monotonic() > deadline
            for session in [s for s in running if s.has_ended() or is_late]:
                running.pop(session).close()
                yield session
            if is_late:
                return
            time.sleep(0.1)
