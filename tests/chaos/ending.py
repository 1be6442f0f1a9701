"""The check with which every fault ends: nothing lost, doubled, stuck or left over."""

import contextlib
import json
import os
from collections import Counter
from pathlib import Path

import redis
from billiard.exceptions import WorkerLostError
from celery.exceptions import TimeLimitExceeded
from kombu import Connection
from worker import Events, wait_for

PROC = Path("/proc")

#: TCP connections that the worker's main process, or another one, may have more
#: than before: clients of Redis (of the broker and of the results) open one for
#: each of their threads that happens to use it at the same time, and keep it;
#: and kombu's Redis transport forgets one or two at each reconnect.
MORE_CONNECTIONS = 40

#: Tasks for which there is no slot, when all are filled.
TOO_MANY = 5


@contextlib.contextmanager
def ending_well(worker, *, acks_arrive=True):
    """Run *worker*; at the end it stops in good order and leaves nothing, nor a message.

    *acks_arrive*: whether its late acks reach the broker; if not, Redis keeps
    the messages for the visibility timeout, and RabbitMQ sends them again.
    """
    with worker:
        yield worker
    wait_for(
        lambda: messages_left(worker.transport, acks_arrive) == 0,
        lambda: f"an empty queue: {messages_left(worker.transport)}",
    )


class Ending:
    """A worker before and after a fault; use it as a context manager, then :meth:`check`.

    Measures when it is entered, and so the worker has to be idle then. A new
    worker gets tasks for all its slots before, so that what is opened at first
    use is open.

    *listen*: whether to count events too; not where the broker goes away.
    """

    def __init__(self, worker, tmp_path, *, listen=True):
        self.worker = worker
        self._tmp_path = tmp_path
        self._gates = []
        self._events = Events(worker.client.app) if listen else None

    def __enter__(self):
        if self._events is not None:
            self._events.__enter__()
        self.slots = self.worker.pool()["max-concurrency"]
        if not self.worker.records("ended"):
            self._fill_all_slots()
        self._wait_idle()
        self._prefetch = self.worker.stats()["prefetch_count"]
        self._count = len(self.worker.pool_pids())
        self._timers = self._pool_timers()
        self._descriptors = self._measure()
        return self

    def __exit__(self, *exc_info):
        for gate in self._gates:
            gate.touch()  # a test that failed leaves tasks that wait
        if self._events is not None:
            self._events.__exit__(*exc_info)

    # For the tests.

    def gate(self):
        """A path for tasks to wait for; ``touch`` it to let them go on."""
        self._gates.append(self._tmp_path / f"gate-{len(self._gates)}")
        return self._gates[-1]

    def send(self, task, *args, count, **options):
        """Send *count* tasks with early and as many with late acks; return two lists of results.

        First all early ones, so that each process gets half of each kind.
        """
        send = self.worker.client.send
        early = [send(task, *args, **options) for _ in range(count)]
        return early, [send(f"{task}_late", *args, **options) for _ in range(count)]

    def wait_started(self, *results, times=1):
        """Wait until each of the tasks has started, *times* times."""
        self.wait_recorded("started", *results, times=times)

    def wait_recorded(self, what, *results, times=1):
        """Wait until each of the tasks has recorded *what*, *times* times."""
        wait_for(
            lambda: all(n >= times for n in self.count_records(what, results).values()),
            lambda: f"{len(results)} tasks have {what}:\n{self.worker.tail()}",
        )

    def count_records(self, what, results):
        """How often each of the tasks has recorded *what*, by id."""
        counts = Counter({result.id: 0 for result in results})
        for line in self.worker.records(what):
            if line["id"] in counts:
                counts[line["id"]] += 1
        return counts

    def runs(self, *results):
        """How often the tasks have started, all together."""
        return self.count_records("started", results).total()

    def check(self, ended=(), lost=(), timed_out=(), repeated=(), *, all_events=True):
        """Check what became of the tasks, and that the worker is as it was.

        Arguments:
            ended: tasks that must have ended well, in exactly one of their runs.
            lost: tasks that must have failed since their process died.
            timed_out: tasks that must have failed since their time was over.
            repeated: tasks that must have ended well in each of their runs; the
                broker may have sent them again, since it got no ack.
            all_events: whether each end must have been announced; the broker
                may have been away.
        """
        self._check_outcomes(ended, (*lost, *timed_out), repeated)
        self._check_errors(lost, WorkerLostError)
        self._check_errors(timed_out, TimeLimitExceeded)
        if self._events is not None:
            self._check_events((*ended, *repeated), (*lost, *timed_out), all_events)
        self._wait_idle()
        self._check_processes()
        self._fill_all_slots()
        self._check_prefetch()
        self._wait_idle()
        self._check_descriptors()
        assert self._pool_timers() == self._timers

    # Tasks.

    def _check_outcomes(self, ended, failed, repeated):
        for result in (*ended, *repeated):
            result.get()
        for result in failed:
            result.get(propagate=False)
        wait_for(
            lambda: (
                self.count_records("ended", repeated) == self.count_records("started", repeated)
            ),
            "all runs to end",
        )
        assert set(self.count_records("ended", ended).values()) <= {1}
        assert set(self.count_records("ended", failed).values()) <= {0}

    def _check_errors(self, results, error):
        for result in results:
            assert isinstance(result.result, error), f"{result.id}: {result.result!r}"

    def _check_events(self, succeeded, failed, all_events):
        expected = Counter()
        for id, n in self.count_records("ended", succeeded).items():
            expected[id, "task-succeeded"] = n
        for result in failed:
            expected[result.id, "task-failed"] = 1
        ids = {id for id, _ in expected}

        def announced():
            return Counter({end: n for end, n in self._events.ends().items() if end[0] in ids})

        if all_events:
            wait_for(lambda: announced() >= expected, lambda: f"events {expected - announced()}")
        assert announced() - expected == Counter()

    # The worker.

    def _ask(self, method, **arguments):
        """What the worker answers to ``inspect``; None when it does not."""
        inspect = self.worker.client.app.control.inspect(
            [self.worker.hostname], timeout=1, limit=1
        )
        replies = inspect._request(method, **arguments)
        return replies[self.worker.hostname] if replies else None

    def _fill_all_slots(self):
        """Run as many tasks as there are slots, all at once, and not one more."""
        gate = self.gate()
        send = self.worker.client.send
        results = [send("hold", str(gate)) for _ in range(self.slots)]
        self.wait_started(*results)
        more = [send("hold", str(gate)) for _ in range(TOO_MANY)]
        wait_for(lambda: len(self._ask("reserved") or ()) == TOO_MANY, self.worker.tail)
        assert self.runs(*more) == 0
        gate.touch()
        for result in (*results, *more):
            result.get()

    def _wait_idle(self):
        """No job is in the pool, and Celery knows of none."""

        def jobs():
            return [self._ask(method) for method in ("active", "reserved", "scheduled")]

        wait_for(lambda: self.worker.slots_in_use() == 0, lambda: f"jobs: {self.worker.pool()}")
        wait_for(lambda: jobs() == [[], [], []], lambda: f"active, reserved, scheduled: {jobs()}")

    def _check_processes(self):
        wait_for(
            lambda: len(self.worker.up_processes()) == len(self.worker.pool_pids()) == self._count,
            lambda: f"{self._count} processes: {self.worker.pool()}\n{self.worker.tail()}",
        )
        expected = {self.worker.process.pid, *self.worker.pool_pids()}
        wait_for(
            lambda: set(self.worker.family()) == expected,
            lambda: f"{expected} and no other process: {self.worker.family()}",
        )

    def _check_prefetch(self):
        wait_for(
            lambda: self.worker.stats()["prefetch_count"] == self._prefetch,
            lambda: f"prefetch {self._prefetch}: {self.worker.stats()['prefetch_count']}",
        )

    def _pool_timers(self):
        return wait_for(lambda: self._ask("pool_timers"), "an answer to inspect pool_timers")

    # Descriptors.

    def _measure(self):
        """Descriptors of the worker's main process, and the most of each kind in a child."""
        most = Counter()
        for pid in self.worker.pool_pids():
            most |= descriptors(pid)
        return {"main": descriptors(self.worker.process.pid), "child": most}

    def _check_descriptors(self):
        def more():
            return {
                (who, kind): (self._descriptors[who][kind], count)
                for who, now in self._measure().items()
                for kind, count in now.items()
                if count > self._descriptors[who][kind] + tolerance(who, kind)
            }

        wait_for(lambda: not more(), lambda: f"descriptors, before and after: {more()}")


def messages_left(transport, unacked=True):
    """How many messages the broker holds, with those that were not acknowledged."""
    if transport.name == "redis":
        with redis.Redis.from_url(transport.broker) as client:
            messages = [json.loads(value) for value in client.hvals("unacked")]
            keys = [routing_key for _, _, routing_key in messages if unacked]
            return client.llen(transport.queue) + keys.count(transport.queue)
    with Connection(transport.broker) as connection:
        # It counts those that wait; what a worker had is there again when it has gone.
        queue = connection.default_channel.queue_declare(transport.queue, passive=True)
        return queue.message_count


def tolerance(who, kind):
    """How many descriptors of *kind* may be more than before."""
    if kind == "tcp":
        return MORE_CONNECTIONS
    # A process lets go of what its parent has by putting /dev/null in its place,
    # and one that replaces another was forked from a parent that had more.
    return 100 if who == "child" and kind == "/dev/null" else 0


def descriptors(pid):
    """How many descriptors of each kind process *pid* has."""
    lines = (PROC / str(pid) / "net" / "unix").read_text().splitlines()[1:]
    unix = {line.split()[6] for line in lines}
    kinds = Counter()
    for entry in (PROC / str(pid) / "fd").iterdir():
        try:
            kind, _, inode = os.readlink(entry).partition(":[")
        except FileNotFoundError:
            continue  # closed meanwhile
        if kind == "socket":
            kind = "unix" if inode.rstrip("]") in unix else "tcp"
        kinds[kind] += 1
    return kinds
