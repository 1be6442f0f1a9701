"""The client side of a benchmark, in a process of its own and any environment.

Commands are JSON lines on standard input, answers JSON lines on standard
output. A library has a program with one subclass of :class:`Client`; all that
is the same for all libraries is here. Needs Python and redis.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

import redis

from .ledger import Ledger

__all__ = ["Client", "arrivals"]

CHUNK = 1000


def arrivals(rate: float, count: int, seed: int) -> Iterator[float]:
    """Yield *count* times of independent arrivals, *rate* a second on average."""
    chance = random.Random(seed)
    now = 0.0
    for _ in range(count):
        now += chance.expovariate(rate)
        yield now


class Client:
    """Publishes tasks and reads their results.

    Arguments:
        ledger: path of the ledger, where the times of publishing go.
        results: the URL of the Redis that has the results.
        name: of the worker's queue.
    """

    def __init__(self, ledger: str, results: str, name: str) -> None:
        self.ledger = Ledger(ledger)
        self.redis = redis.Redis.from_url(results)
        self.name = name
        #: The library's id of each task, by number.
        self.ids: dict[int, Any] = {}

    # What a library's subclass does.

    def ping(self) -> bool:
        """Whether the worker answers. Without such a thing a first task is the ping."""
        return True

    def publish(self, task: str, args: list[Any], later: bool, with_result: bool) -> Any:
        """Send one task, *later* to where no worker looks yet; return its id."""
        raise NotImplementedError

    def release(self) -> bool:
        """Give the worker all that was published for later; return whether it is there already.

        If not, the clock starts with the first task.
        """
        raise NotImplementedError

    def result_key(self, task_id: Any) -> str:
        """The key in Redis under which the result of a task is stored."""
        raise NotImplementedError

    def decode(self, data: bytes) -> Any:
        """Return the task's return value; anything else for a failure."""
        raise NotImplementedError

    # Commands.

    def do_ping(self) -> Any:
        return self.ping()

    def do_publish(
        self, task: str, first: int, count: int, args: list[Any], later: bool, with_result: bool
    ) -> Any:
        for number in range(first, first + count):
            self.ledger.published[number] = time.monotonic()
            self.ids[number] = self.publish(task, [number, *args], later, with_result)

    def do_release(self) -> Any:
        start = time.monotonic()
        return start if self.release() else None

    def do_flow(self, task: str, first: int, count: int, args: list[Any], backlog: int) -> Any:
        """Publish as fast as at most *backlog* tasks have not ended."""
        for offset in range(count):
            while offset - self.ledger.count_ended(first, offset) >= backlog:
                time.sleep(0.002)
            self.do_publish(task, first + offset, 1, args, False, True)

    def do_stream(
        self, task: str, first: int, args: list[Any], rate: float, count: int, seed: int
    ) -> Any:
        """Publish when it is time, not when there is room; return how late the last was.

        A task counts as published when it should have been.
        """
        start = time.monotonic()
        for offset, arrival in enumerate(arrivals(rate, count, seed)):
            if (pause := start + arrival - time.monotonic()) > 0:
                time.sleep(pause)
            self.do_publish(task, first + offset, 1, args, False, True)
            self.ledger.published[first + offset] = start + arrival
        return time.monotonic() - start - arrival

    def do_results(self, first: int, count: int, timeout: float) -> Any:
        """Wait until all results are stored; return when, and what is wrong with them."""
        numbers = range(first, first + count)
        keys = [self.result_key(self.ids[number]) for number in numbers]
        deadline = time.monotonic() + timeout
        for start in range(0, count, CHUNK):
            chunk = keys[start : start + CHUNK]
            while self.redis.exists(*chunk) < len(chunk):
                if time.monotonic() > deadline:
                    return {"at": None, "wrong": ["results are missing"]}
                time.sleep(0.005)
        at = time.monotonic()
        wrong = [
            f"task {number}: {value!r}"
            for start in range(0, count, CHUNK)
            for number, value in zip(
                numbers[start : start + CHUNK],
                self._values(keys[start : start + CHUNK]),
                strict=True,
            )
            if value != number
        ]
        return {"at": at, "wrong": wrong[:5]}

    def do_keys(self, first: int, count: int) -> Any:
        """The keys of the results of tasks."""
        return [self.result_key(self.ids[number]) for number in range(first, first + count)]

    def _values(self, keys: list[str]) -> list[Any]:
        values: Any = self._read(keys)
        self.redis.delete(*keys)
        return [None if data is None else self.decode(data) for data in values]

    def _read(self, keys: list[str]) -> Any:
        return self.redis.mget(keys)

    def run(self) -> None:
        """Obey commands until standard input ends."""
        for line in sys.stdin:
            command = json.loads(line)
            try:
                answer = getattr(self, "do_" + command.pop("do"))(**command)
                reply = {"ok": answer}
            except Exception as exc:
                reply = {"error": repr(exc)}
            print(json.dumps(reply), flush=True)
