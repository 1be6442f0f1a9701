"""Run one pool once: a real worker, a full queue, and a clock.

The clock starts when the worker is told to consume a queue that is already
full, and ends when the last result is stored, so that it measures processing
alone. Whatever is not exactly right is a :exc:`BenchmarkError`, never a number.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO, Any, cast

import redis

from .app import app
from .pools import COMMON_OPTIONS, PoolSpec

__all__ = ["BenchmarkError", "run_once", "use_redis"]

START_TIMEOUT = 30.0
STOP_TIMEOUT = 30.0
#: Seconds without a new result after which a run is given up.
STALL_TIMEOUT = 30.0
#: Seconds between two looks at the results: the clock's resolution.
POLL_INTERVAL = 0.01
#: Results that one look fetches at most.
POLL_BATCH = 1000

#: Tasks that run before the clock starts: every process has then connected to Redis.
PRIMER_TASKS = 500


class BenchmarkError(Exception):
    """The worker crashed, stalled, or did not do exactly what it should."""


def use_redis(url: str) -> None:
    """Make *url* the broker and result backend of all runs."""
    app.conf.update(broker_url=url, result_backend=url)


def run_once(name: str, pool: PoolSpec, tasks: int) -> float:
    """Run *tasks* no-op tasks through a fresh worker; return the tasks per second.

    Raises :exc:`BenchmarkError` unless each task ran once and its result is right.
    """
    hostname = f"{name}-{os.getpid()}@benchmarks"
    primer_queue, queue = f"{hostname}.primer", f"{hostname}.tasks"
    try:
        with _Worker(hostname, pool, primer_queue) as worker, _result_client() as client:
            worker.wait_until_ready()
            _Results(client, worker, _publish(pool.task, primer_queue, PRIMER_TASKS)).wait()
            results = _Results(client, worker, _publish(pool.task, queue, tasks))
            start = time.perf_counter()
            worker.consume(queue)
            results.wait()
            seconds = time.perf_counter() - start
            worker.check_total(pool.task.name, PRIMER_TASKS + tasks)
    finally:
        _delete_queues(primer_queue, queue)
    return tasks / seconds


class _Worker:
    """A ``celery worker`` subprocess; the block's end is its warm shutdown."""

    def __init__(self, hostname: str, pool: PoolSpec, queue: str) -> None:
        self.hostname = hostname
        self._command = (
            *(sys.executable, "-m", "celery", "-A", "benchmarks.app", "worker"),
            *("-n", hostname, "-Q", queue),
            *pool.options,
            *COMMON_OPTIONS,
        )
        self._log: IO[bytes] = tempfile.TemporaryFile()

    def __enter__(self) -> _Worker:
        self._process = subprocess.Popen(
            self._command,
            env={
                **os.environ,
                "CELERY_BROKER_URL": app.conf.broker_url,
                "CELERY_RESULT_BACKEND": app.conf.result_backend,
            },
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return self

    def __exit__(self, exc_type: object, *details: object) -> None:
        with self._log:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            if exc_type is None and self._process.returncode != 0:
                raise self.error(f"ended with exit code {self._process.returncode}")

    def wait_until_ready(self) -> None:
        """Return when the worker answers a ping."""
        deadline = time.monotonic() + START_TIMEOUT
        while not app.control.ping(destination=[self.hostname], timeout=0.5, limit=1):
            self.check_alive()
            if time.monotonic() > deadline:
                raise self.error(f"did not answer within {START_TIMEOUT} seconds")

    def consume(self, queue: str) -> None:
        """Tell the worker to take tasks from *queue* too."""
        replies = app.control.add_consumer(
            queue, destination=[self.hostname], reply=True, limit=1, timeout=10.0
        )
        if not replies or "ok" not in replies[0][self.hostname]:
            raise self.error(f"did not consume {queue}: {replies!r}")

    def check_alive(self) -> None:
        """Raise an error if the worker has ended."""
        if self._process.poll() is not None:
            raise self.error(f"ended early with exit code {self._process.returncode}")

    def check_total(self, task_name: str, expected: int) -> None:
        """Raise an error unless the worker has accepted exactly *expected* tasks."""
        stats: Any = app.control.inspect([self.hostname], timeout=10.0).stats() or {}
        total = stats.get(self.hostname, {}).get("total", {}).get(task_name)
        if total != expected:
            raise self.error(f"says it ran {total} tasks, not {expected}")

    def error(self, what: str) -> BenchmarkError:
        """Return an error that says *what* the worker did, with the end of its log."""
        self._log.seek(0)
        log = self._log.read().decode(errors="replace")[-4000:]
        return BenchmarkError(f"worker {self.hostname} {what}; the end of its log:\n{log}")


class _Results:
    """The results of published tasks, each checked once.

    Looks at the oldest missing ones only, so that the look costs the worker little.
    """

    def __init__(self, client: redis.Redis, worker: _Worker, expected: dict[str, int]) -> None:
        self._client = client
        self._worker = worker
        self._backend = cast(Any, app.backend)
        self._missing = {
            self._backend.get_key_for_task(uuid): number for uuid, number in expected.items()
        }

    def wait(self) -> None:
        """Return when all results are stored and right, and remove them."""
        deadline = time.monotonic() + STALL_TIMEOUT
        while self._missing:
            if self._take_stored():
                deadline = time.monotonic() + STALL_TIMEOUT
                continue
            self._worker.check_alive()
            if time.monotonic() > deadline:
                raise self._worker.error(
                    f"left {len(self._missing)} tasks without a result for {STALL_TIMEOUT} seconds"
                )
            time.sleep(POLL_INTERVAL)

    def _take_stored(self) -> bool:
        """Check the results that have come; whether these were all that were asked for."""
        keys = list(self._missing)[:POLL_BATCH]
        values: Any = self._client.mget(keys)
        stored = {key: value for key, value in zip(keys, values, strict=True) if value is not None}
        for key, value in stored.items():
            meta = self._backend.decode_result(value)
            number = self._missing.pop(key)
            if meta["status"] != "SUCCESS" or meta["result"] != number:
                raise BenchmarkError(f"task {number} ended with {meta}")
        if stored:
            self._client.delete(*stored)
        return len(stored) == len(keys)


def _result_client() -> redis.Redis:
    return redis.Redis.from_url(app.conf.result_backend)


def _publish(task: Any, queue: str, count: int) -> dict[str, int]:
    """Put *count* calls of *task* into *queue*; return each one's number by its id."""
    expected = {}
    with app.producer_pool.acquire(block=True) as producer:
        for number in range(count):
            result = task.apply_async((number,), queue=queue, producer=producer)
            expected[result.id] = number
    return expected


def _delete_queues(*names: str) -> None:
    with app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        for name in names:
            channel.queue_delete(name)
