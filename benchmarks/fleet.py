"""What does a message cost a fleet of idle consumers on one queue? ``python -m benchmarks.fleet``.

kombu's consumer on the hub, as in Celery's worker, with kombu's Redis transport and
with ours. Messages are short work: a consumer acknowledges one at once.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import os
import random
import select
import struct
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import redis
from kombu import Connection, Queue
from kombu.asynchronous import Hub, set_event_loop

from celery_asyncpool.redis_transport import batched

from . import procfs
from .processes import BenchmarkError
from .servers import MemoryRedis
from .stats import percentile
from .tables import markdown

QUEUE = "fleet"
#: Which consumer, and the seconds from publish to there.
RECORD = struct.Struct("=id")
#: Messages before those that count: by then the fleet has settled.
WARM_UP = 200
#: So many records fit into a pipe that nobody reads while messages are published.
MOST_MESSAGES = 5000
#: Seconds without a record after which consumers are given up.
PATIENCE = 60.0


class Figures(NamedTuple):
    """Of one fleet.

    Attributes:
        redis: milliseconds of CPU that Redis has used, for a message.
        cpu: those of all consumers.
        waits: seconds from publish until a consumer had it, sorted.
        most: share of the consumer that got the most.
    """

    redis: float
    cpu: float
    waits: list[float]
    most: float


def consume(number: int, url: str, batching: bool, records: int, ready: int) -> None:
    """Be one consumer, until killed."""
    hub = Hub()
    set_event_loop(hub)
    connection = Connection(url)
    if batching:
        batched(connection)

    consumer = connection.Consumer(
        Queue(QUEUE), on_message=functools.partial(note, number, records), prefetch_count=100
    )
    connection.register_with_event_loop(hub)
    consumer.consume()
    os.write(ready, b".")
    turns = hub.create_loop()
    while True:
        next(turns)


def note(number: int, records: int, message: Any) -> None:
    """Consumer *number* has got *message*."""
    message.ack()
    os.write(records, RECORD.pack(number, time.monotonic() - message.payload))


@contextlib.contextmanager
def fleet(workers: int, url: str, batching: bool) -> Iterator[tuple[int, list[int]]]:
    """Run consumers; yield where they write their records, and their pids."""
    context = multiprocessing.get_context("fork")
    records, write_records = os.pipe()
    is_ready, write_ready = os.pipe()
    processes = [
        context.Process(target=consume, args=(number, url, batching, write_records, write_ready))
        for number in range(workers)
    ]
    try:
        for process in processes:
            process.start()
        for _ in processes:
            read(is_ready, 1)
        yield records, [process.pid for process in processes if process.pid]
    finally:
        for process in processes:
            process.kill()
            process.join()
        for fd in (records, write_records, is_ready, write_ready):
            os.close(fd)


def publish(url: str, count: int, rate: float) -> None:
    """Send *count* messages at random times, *rate* in a second."""
    rng = random.Random(1)
    with Connection(url) as connection, connection.Producer() as producer:
        at = time.monotonic()
        for _ in range(count):
            at += rng.expovariate(rate)
            time.sleep(max(at - time.monotonic(), 0))
            producer.publish(time.monotonic(), routing_key=QUEUE)


def read(fd: int, most: int) -> bytes:
    """Read what consumers have written, which they do soon while they live."""
    if not select.select([fd], [], [], PATIENCE)[0]:
        raise BenchmarkError(f"the consumers have written nothing for {PATIENCE:.0f} s")
    return os.read(fd, most)


def receive(records: int, count: int) -> list[tuple[int, float]]:
    """Read so many records."""
    data = b""
    while len(data) < count * RECORD.size:
        data += read(records, 1 << 16)
    return list(RECORD.iter_unpack(data))


def measure(workers: int, batching: bool, rate: float, count: int) -> Figures:
    """Send *count* messages to a fleet, after those that warm it up."""
    with MemoryRedis() as server, redis.Redis.from_url(server.url) as client:
        with fleet(workers, server.url, batching) as (records, pids):
            publish(server.url, WARM_UP, rate)
            receive(records, WARM_UP)
            before = _redis_cpu(client), _cpu(pids)
            publish(server.url, count, rate)
            got = receive(records, count)
            after = _redis_cpu(client), _cpu(pids)
    numbers = [number for number, _ in got]
    return Figures(
        redis=(after[0] - before[0]) * 1000 / count,
        cpu=(after[1] - before[1]) * 1000 / count,
        waits=sorted(wait for _, wait in got),
        most=max(numbers.count(number) for number in set(numbers)) / count,
    )


def _redis_cpu(client: Any) -> float:
    info = client.info("cpu")
    return float(info["used_cpu_sys"] + info["used_cpu_user"])


def _cpu(pids: list[int]) -> float:
    return sum(procfs.cpu_seconds(pid) or 0.0 for pid in pids)


def row(workers: int, batching: bool, figures: Figures) -> list[str]:
    """Return the cells of one line."""
    return [
        str(workers),
        "with" if batching else "without",
        f"{figures.redis:.2f}",
        f"{figures.cpu:.2f}",
        *(f"{percentile(figures.waits, share) * 1000:.1f}" for share in (0.5, 0.99)),
        f"{figures.most:.0%}",
    ]


def main() -> None:
    """Fleets of several sizes, with and without batches."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 5, 20, 50])
    parser.add_argument("--rate", type=float, default=200.0, help="messages in a second (200)")
    parser.add_argument("--count", type=int, default=1000, help="messages (1000)")
    args = parser.parse_args()
    if min(args.workers) < 1:
        parser.error("--workers: numbers of at least 1")
    if args.rate <= 0:
        parser.error("--rate: more than 0")
    if not 1 <= args.count <= MOST_MESSAGES:
        parser.error(f"--count: 1 to {MOST_MESSAGES}")
    head = ["workers", "batches", "Redis ms", "workers ms", "p50 ms", "p99 ms", "most"]
    rows = [
        row(workers, batching, measure(workers, batching, args.rate, args.count))
        for workers in args.workers
        for batching in (False, True)
    ]
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
