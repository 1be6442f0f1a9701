"""Consumers that are killed with SIGKILL at random moments; after each, what is left is counted.

A whole worker takes seconds to start. Here one warm process forks a consumer
(kombu's, on the hub, as in the worker) for each kill, which takes milliseconds.
Messages are few, so that the consumer is often idle when one comes.

    python -m tests.chaos.killing redis://127.0.0.1:6379/0 --kills 5000 --stock
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from typing import Any

import redis
from kombu import Connection, Exchange, Queue
from kombu.asynchronous import Hub, set_event_loop
from kombu.utils.json import dumps, loads

import celery_asyncpool.redis_transport.channel  # noqa: F401 - once, not in each consumer
from celery_asyncpool.redis_transport import batched

QUEUES = ("first", "second")
PRIORITIES = (0, 3)

#: Most messages that there are at a time.
MESSAGES = 20

OPTIONS = {
    # What a killed consumer had is given back when the next one starts.
    "visibility_timeout": 0,
    "unacked_mutex_expire": 1,
    "queue_order_strategy": "round_robin",
}


@dataclasses.dataclass
class Count:
    """What was seen in all rounds.

    Attributes:
        kills: consumers killed.
        held: kills after which messages were left that a consumer had.
        sent: messages sent.
        runs: how often one was run.
        acked: messages that are gone since they were acknowledged.
        lost: messages that are gone and were not.
        lost_late: those of them that are acknowledged after their run.
        doubled: messages that were there twice.
        risen: messages that came again after they were gone.
        torn: rounds after which the index did not name exactly what was unacknowledged.
        seconds: how long it took.
    """

    kills: int = 0
    held: int = 0
    sent: int = 0
    runs: int = 0
    acked: int = 0
    lost: int = 0
    lost_late: int = 0
    doubled: int = 0
    risen: int = 0
    torn: int = 0
    seconds: float = 0.0


class Ledger:
    """What consumers did, in a file that a kill leaves whole: one write per line."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile("a+b")
        self._position = 0

    def write(self, what: str, name: str) -> None:
        os.write(self._file.fileno(), f"{what} {name}\n".encode())

    def read(self) -> Iterator[tuple[str, str]]:
        """What is new."""
        text = os.pread(self._file.fileno(), 1 << 24, self._position)
        self._position += len(text)
        for line in text.decode().splitlines():
            what, _, name = line.partition(" ")
            yield what, name


class Consumer:
    """Takes, runs and acknowledges messages until it is killed. In the child."""

    def __init__(self, url: str, batching: bool, ledger: Ledger) -> None:
        self._ledger = ledger
        self._random = random.Random(os.getpid())
        self._hub = Hub()
        set_event_loop(self._hub)
        self._connection = Connection(url, transport_options=OPTIONS)
        if batching:
            batched(self._connection)
        exchange = Exchange("killing", "direct")
        queues = [Queue(name, exchange, routing_key=name) for name in QUEUES]
        self._consumer = self._connection.Consumer(
            queues,
            on_message=self._on_message,
            prefetch_count=self._random.choice([1, 4, 100, 0]),
            auto_declare=True,
        )

    def run(self, ready: int) -> None:
        """As Celery's loop does: register, consume, turn. Writes a byte to *ready*."""
        self._connection.register_with_event_loop(self._hub)
        self._consumer.consume()
        os.write(ready, b".")
        loop = self._hub.create_loop()
        while True:
            next(loop)

    def _on_message(self, message: Any) -> None:
        name = message.headers["id"]
        if message.headers["late"]:
            self._hub.call_later(self._random.choice([0, 0.001, 0.005]), self._end, message)
        else:
            self._ack(message)
            self._ledger.write("ran", name)

    def _end(self, message: Any) -> None:
        if self._random.random() < 0.1:
            message.requeue()
            return
        self._ledger.write("ran", message.headers["id"])
        self._ack(message)

    def _ack(self, message: Any) -> None:
        self._ledger.write("acked", message.headers["id"])
        message.ack()


class Killing:
    """The rounds; use it as a context manager."""

    def __init__(self, url: str, batching: bool, seed: int) -> None:
        self.count = Count()
        self._url = url
        self._batching = batching
        self._random = random.Random(seed)
        self._client = redis.Redis.from_url(url)
        self._ledger = Ledger()
        #: Messages that are in Redis, and whether each is acknowledged late.
        self._there: dict[str, bool] = {}
        self._gone: set[str] = set()
        self._acked: set[str] = set()

    def __enter__(self) -> Killing:
        self._client.flushdb()
        return self

    def __exit__(self, *args: object) -> None:
        self._client.close()

    def run(self, kills: int) -> Count:
        start = time.monotonic()
        while self.count.kills < kills:
            self._round()
        self.count.seconds = round(time.monotonic() - start, 1)
        return self.count

    def _round(self) -> None:
        """Send, start a consumer, send, kill it, count."""
        most = self._random.randint(1, MESSAGES) - len(self._there)
        before = self._random.choice([0, most])  # none: it is idle when the first one comes
        self._send(before)
        # A second one takes from the first what that has not acknowledged.
        second = self._consumer if self._random.random() < 0.2 else contextlib.nullcontext
        with self._consumer(), second():
            if self._random.random() < 0.9:
                self._wait(0.003)
            for _ in range(most - before):
                self._send(1)
                if self._random.random() < 0.5:
                    time.sleep(self._random.uniform(0, 0.001))
            self._wait(self._random.choice([0.0005, 0.003, 0.015]))
        # A consumer that was killed while it gave messages back holds this.
        self._client.delete("unacked_mutex")
        self._check()

    def _wait(self, most: float) -> None:
        time.sleep(self._random.uniform(0, most))

    @contextlib.contextmanager
    def _consumer(self) -> Iterator[None]:
        """A consumer, most often a ready one; killed at the end of the block."""
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.close(read)
                Consumer(self._url, self._batching, self._ledger).run(write)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        os.close(write)
        try:
            if self._random.random() < 0.9:
                os.read(read, 1)
            else:
                self._wait(0.02)
            yield
        finally:
            os.close(read)
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            self.count.kills += 1
        if not os.WIFSIGNALED(status):
            raise RuntimeError(f"a consumer has ended by itself: {status}")

    def _send(self, number: int) -> None:
        for _ in range(number):
            self.count.sent += 1
            name, late = str(self.count.sent), bool(self._random.getrandbits(1))
            queue, priority = self._random.choice(QUEUES), self._random.choice(PRIORITIES)
            self._there[name] = late
            key = f"{queue}\x06\x16{priority}" if priority else queue
            self._client.lpush(key, _message(name, queue, priority, late))

    def _check(self) -> None:
        """Compare what there is with what there must be."""
        for what, name in self._ledger.read():
            if what == "ran":
                self.count.runs += 1
            else:
                self._acked.add(name)
        tags, held, waiting = self._look()
        if tags != set(held):
            self.count.torn += 1
        self.count.held += bool(held)
        names = collections.Counter([*held.values(), *waiting])
        self.count.doubled += sum(number > 1 for number in names.values())
        self.count.risen += len(self._gone & set(names))
        for name in self._there.keys() - names.keys():
            late = self._there.pop(name)
            self._gone.add(name)
            if name in self._acked:
                self.count.acked += 1
            else:
                self.count.lost += 1
                self.count.lost_late += late

    def _look(self) -> tuple[set[str], dict[str, str], list[str]]:
        """The tags in the index, the messages by tag that a consumer had, those that wait."""
        with self._client.pipeline() as pipe:
            pipe.zrange("unacked_index", 0, -1)
            pipe.hgetall("unacked")
            for queue in QUEUES:
                for priority in (0, 3, 6, 9):
                    pipe.lrange(f"{queue}\x06\x16{priority}" if priority else queue, 0, -1)
            index, unacked, *lists = pipe.execute()
        held = {}
        for tag, text in unacked.items():
            message, exchange, routing_key = loads(text.decode())
            assert message["properties"]["delivery_tag"] == tag.decode(), message
            assert exchange == "killing", exchange
            assert routing_key in QUEUES, routing_key
            held[tag.decode()] = message["headers"]["id"]
        waiting = [loads(text.decode())["headers"]["id"] for texts in lists for text in texts]
        return {tag.decode() for tag in index}, held, waiting


def _message(name: str, queue: str, priority: int, late: bool) -> str:
    """As kombu publishes it."""
    return dumps(
        {
            "body": "W10=",
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"id": name, "late": late},
            "properties": {
                "delivery_mode": 2,
                "delivery_info": {"exchange": "killing", "routing_key": queue},
                "priority": priority,
                "body_encoding": "base64",
                "delivery_tag": f"tag-{name}",
            },
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="of a Redis database that is emptied")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--stock", action="store_true", help="kombu's own transport")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", file=sys.stderr)
    with Killing(arguments.url, not arguments.stock, arguments.seed) as killing:
        print(json.dumps(dataclasses.asdict(killing.run(arguments.kills))))


if __name__ == "__main__":
    main()
