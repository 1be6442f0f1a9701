"""Workers with batches from Redis, beside one of kombu's own transport, on the same queues.

What kombu promises is the same for both, so most tests run with each of them.
"""

import contextlib
import os
import random
import signal
from collections import Counter
from itertools import groupby

import kombu
import pytest
import redis as redis_client
from celery.app.defaults import NAMESPACES
from transports import messages_in_redis, redis_database
from worker import Transport, Worker, wait_for

#: A database of these tests' own: they count all keys, and empty it.
DATABASE = 4

#: What runs a test's worker.
POOLS = {"batched": ("-P", "asyncpool"), "stock": ("-P", "prefork")}

#: As in test_kill_worker.py.
VISIBILITY = {
    "visibility_timeout": 1,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
}

OPTIONS = {
    "plain": {},
    "prefix": {"global_keyprefix": "shop:"},
    "priorities": {"priority_steps": list(range(10)), "sep": ":"},
    "sorted": {"queue_order_strategy": "sorted"},
    "keys": {"unacked_key": "held", "unacked_index_key": "held_index"},
}

kinds = pytest.mark.parametrize("kind", POOLS)
both_ways = pytest.mark.parametrize(
    ("kind", "heir"), [("batched", "stock"), ("stock", "batched")], ids=["to stock", "to batched"]
)


class AnyWorker(Worker):
    """A worker with any pool: only this one's answers for its processes."""

    def wait_ready(self, count=1):
        self.wait_log(" ready.", count)


class Queues:
    """The queues of one test, their workers, and what these have recorded.

    Two queues, the second of which sorts first. *options* are those of the
    transport, for workers and clients.
    """

    def __init__(self, url, results, options, tmp_path):
        self._transport = Transport("redis", url, results)
        self._transport.queue = "b-queue"
        self.names = ("b-queue", "a-queue")
        self._options = options
        self._tmp_path = tmp_path
        self._workers = []
        self.client = redis_client.Redis.from_url(url)

    def worker(self, kind, *args, conf=""):
        """A worker of that kind, not yet started."""
        conf = f"{conf}; " * bool(conf) + (
            f"broker_transport_options={self._options!r}; "
            f"asyncpool_redis_batching={kind == 'batched'}"
        )
        pool = POOLS.get(kind, POOLS["batched"])
        options = ("-Q", ",".join(self.names), *args)
        env = {"BATCHES_CONF": conf}
        worker = AnyWorker(
            self._transport, "batches", self._tmp_path, *options, env=env, selection=pool
        )
        worker.client.app.conf.broker_transport_options = self._options
        self._workers.append(worker)
        return worker

    def send(self, task, *args, **options):
        """Send *task*; return its id."""
        return self._workers[0].client.send(task, *args, **options).id

    def started(self):
        """Ids of the tasks that have started, in their order in each worker; each as often."""
        return [line["id"] for worker in self._workers for line in worker.records("started")]

    def wait_started(self, *ids, times=1):
        def all_started():
            counts = Counter(self.started())
            return all(counts[task_id] == times for task_id in ids)

        wait_for(all_started, lambda: f"{ids} have started:\n{self._tail()}")

    def wait_done(self, *ids, what="started"):
        """Wait until each of *ids* has *what*, and no message waits or is held by a worker.

        The second is not enough: between BRPOP and HSET kombu's own transport has
        a message that is nowhere in Redis.
        """
        wait_for(
            lambda: set(ids) <= self._recorded(what) and self.left() == (0, 0),
            lambda: f"left: {self.left()}\n{self._tail()}",
        )

    def _recorded(self, what):
        return {line["id"] for worker in self._workers for line in worker.records(what)}

    def left(self):
        """How many messages wait, and how many a worker holds."""
        prefix = self._options.get("global_keyprefix", "")
        waiting, held, indexed = messages_in_redis(
            self.client,
            *(prefix + name for name in self.names),
            unacked=prefix + self._options.get("unacked_key", "unacked"),
            index=prefix + self._options.get("unacked_index_key", "unacked_index"),
        )
        return waiting, max(held, indexed)

    def _tail(self):
        return "\n".join(f"{worker.hostname}:\n{worker.tail()}" for worker in self._workers)


@pytest.fixture
def queues(request, tmp_path):
    """Make the queues of a test, with these options, in an empty database."""
    url = redis_database(request, DATABASE)
    with contextlib.ExitStack() as stack:

        def make(**options):
            queues = Queues(url, redis_database(request, 1), options, tmp_path)
            queues.client.flushdb()
            stack.callback(queues.client.close)
            return queues

        yield make


def kill(worker):
    """Kill the main process, and wait until its processes are gone."""
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.wait_exit()
    wait_for(lambda: worker.family() == [], lambda: f"these to go: {worker.family()}")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_share(queues, options, tmp_path):
    """Both take from the queues, and each task runs once, whatever its queue and priority."""
    queues = queues(**options)
    gate = tmp_path / "gate"
    rng = random.Random()
    ours = queues.worker("batched", "-c", 4, "--prefetch-multiplier", 1)
    with ours, queues.worker("stock", "-c", 2, "--prefetch-multiplier", 1) as stock:
        held = [queues.send("hold_late", str(gate)) for _ in range(6)]
        queues.wait_started(*held)  # only both together have room for them
        once = [
            queues.send(
                rng.choice(("early", "late")),
                number,
                queue=rng.choice(queues.names),
                priority=rng.randrange(10),
                countdown=rng.choice([None, None, 0.3]),
            )
            for number in range(100)
        ]
        twice = [queues.send("requeued", queue=rng.choice(queues.names)) for _ in range(5)]
        rejected = [queues.send("rejected", queue=rng.choice(queues.names)) for _ in range(5)]
        gate.touch()
        queues.wait_started(*held, *once, *rejected)
        queues.wait_started(*twice, times=2)
        queues.wait_done()

        runs = Counter(held + once + rejected + 2 * twice)
        assert Counter(queues.started()) == runs
        assert ours.records("started") != []
        assert stock.records("started") != []


@pytest.mark.parametrize(
    ("kind", "multiplier", "steps"),
    [
        pytest.param("batched", 1, [0, 3, 6, 9], id="batched"),
        pytest.param("batched", 8, list(range(10)), id="batched-8-ten"),
        pytest.param("stock", 8, list(range(10)), id="stock-8-ten"),
    ],
)
def test_priorities(queues, kind, multiplier, steps):
    """What waits comes by priority, and within one in the order in which it was sent."""
    queues = queues(queue_order_strategy="priority", priority_steps=steps)
    worker = queues.worker(kind, "-c", 1, "--prefetch-multiplier", multiplier)
    priorities = [number % 10 for number in range(30)]
    random.Random().shuffle(priorities)
    sent = [(priority, queues.send("late", priority=priority)) for priority in priorities]

    with worker:
        queues.wait_done(*(task_id for _, task_id in sent))

    def step(pair):
        return max(step for step in steps if step <= pair[0])

    assert queues.started() == [task_id for _, task_id in sorted(sent, key=step)]


@pytest.mark.parametrize(("kind", "multiplier"), [("batched", 1), ("batched", 8), ("stock", 8)])
def test_fair_order(queues, kind, multiplier):
    """Round robin, the default: of two full queues neither has to wait for the other's end."""
    queues = queues()
    worker = queues.worker(kind, "-c", 1, "--prefetch-multiplier", multiplier)
    of = {queues.send("late", queue=name): name for name in queues.names for _ in range(40)}

    with worker:
        queues.wait_done(*of)

    order = [of[task_id] for task_id in queues.started()]
    assert Counter(order) == dict.fromkeys(queues.names, 40)
    stretches = [len(list(group)) for _, group in groupby(order)]
    assert max(stretches) <= multiplier + 1, order


@pytest.mark.parametrize(
    ("kind", "strategy", "first"),
    [
        ("batched", "priority", "b-queue"),
        ("batched", "sorted", "a-queue"),
        ("stock", "sorted", "a-queue"),
    ],
)
def test_strict_order(queues, kind, strategy, first):
    """With the other strategies the second queue comes when the first is empty."""
    queues = queues(queue_order_strategy=strategy)
    worker = queues.worker(kind, "-c", 1, "--prefetch-multiplier", 8)
    of = {queues.send("late", queue=name): name for name in queues.names for _ in range(20)}

    with worker:
        queues.wait_done(*of)

    order = [of[task_id] for task_id in queues.started()]
    stretches = [name for name, _ in groupby(order)]
    assert sorted(stretches) == sorted(queues.names)
    if strategy == "sorted" or kombu.VERSION >= (5, 7):  # before, their order was that of a set
        assert stretches[0] == first


@pytest.mark.parametrize(("kind", "multiplier"), [("batched", 1), ("batched", 4), ("stock", 4)])
def test_no_more_than_the_prefetch_count(queues, kind, multiplier, tmp_path):
    """A worker takes as many messages as it may hold, and no more."""
    queues = queues()
    gate = tmp_path / "gate"
    worker = queues.worker(kind, "-c", 2, "--prefetch-multiplier", multiplier)
    held = [queues.send("hold_late", str(gate)) for _ in range(20)]
    with worker:
        queues.wait_started(*held[:2])
        prefetch = 2 * multiplier
        wait_for(lambda: queues.left() == (20 - prefetch, prefetch), lambda: f"{queues.left()}")
        assert worker.inspect("ping") == {"ok": "pong"}
        assert queues.left() == (20 - prefetch, prefetch)
        gate.touch()
        queues.wait_done(*held)

        assert Counter(queues.started()) == Counter(held)


@pytest.mark.skipif(
    "disable_prefetch" not in NAMESPACES["worker"], reason="came with a later Celery"
)
@kinds
def test_disabled_prefetch(queues, kind, tmp_path):
    """With `worker_disable_prefetch` what has no slot stays in the queue, for others."""
    queues = queues()
    gate = tmp_path / "gate"
    settings = "worker_disable_prefetch=True"
    worker = queues.worker(kind, "-c", 2, conf=settings)
    other = queues.worker("stock", "-c", 2, conf=settings)
    held = [queues.send("hold_late", str(gate)) for _ in range(5)]
    with worker:
        queues.wait_started(*held[:2])
        assert worker.inspect("ping") == {"ok": "pong"}
        assert queues.left() == (3, 2)
        with other:
            queues.wait_started(*held[:4])
            assert worker.inspect("ping") == {"ok": "pong"}
            assert queues.left() == (1, 4)
            gate.touch()
            queues.wait_done(*held)

            assert Counter(queues.started()) == Counter(held)


@both_ways
def test_visibility_timeout(queues, kind, heir, tmp_path):
    """What a killed worker held with late acks the other one gives back, and runs."""
    queues = queues(**VISIBILITY)
    gate = tmp_path / "gate"
    worker = queues.worker(kind, "-c", 2, "--prefetch-multiplier", 5)
    heir = queues.worker(heir, "-c", 2)
    with worker:
        held = [queues.send("hold_late", str(gate), priority=n % 2 * 9) for n in range(8)]
        wait_for(lambda: queues.left() == (0, 8), lambda: f"left: {queues.left()}")
        wait_for(lambda: len(queues.started()) == 2, worker.tail)

        kill(worker)

        gate.touch()
        wait_for_restore(queues)
        with heir:
            queues.wait_done(*held, what="ended")
            assert sorted(line["id"] for line in heir.records("ended")) == sorted(held)


def wait_for_restore(queues):
    """Wait until messages that were held are visible: before kombu 5.7 only a start looks."""
    wait_for(lambda: queues.client.time()[0] > newest(queues) + 1, "time goes by")


def newest(queues):
    return queues.client.zrange("unacked_index", -1, -1, withscores=True)[0][1]


@both_ways
def test_warm_shutdown(queues, kind, heir, tmp_path):
    """A worker that stops gives back what it has not begun, and another one runs that."""
    queues = queues()
    gate = tmp_path / "gate"
    worker = queues.worker(kind, "-c", 2, "--prefetch-multiplier", 4)
    heir = queues.worker(heir, "-c", 2)
    with worker:
        held = [queues.send(task, str(gate)) for task in ("hold", "hold_late") * 4]
        wait_for(lambda: len(worker.records("started")) == 2, worker.tail)
        wait_for(lambda: queues.left()[0] == 0, lambda: f"left: {queues.left()}")

        worker.process.send_signal(signal.SIGTERM)
        worker.wait_log("worker: Warm shutdown")
        gate.touch()

        assert worker.wait_exit() == 0
    with heir:
        queues.wait_done(*held)
        assert Counter(queues.started()) == Counter(held)
        assert heir.records("started") != [], "nothing was given back"


def test_remote_control(queues):
    """Both hear a broadcast; a revoked task runs in neither, be it one that waits for its time.

    Those are taken beyond the prefetch count.
    """
    queues = queues()
    ours = queues.worker("batched", "-c", 2, "--prefetch-multiplier", 1)
    with ours, queues.worker("stock", "-c", 2, "--prefetch-multiplier", 1) as stock:
        control = ours.client.app.control
        names = {ours.hostname, stock.hostname}

        def answers():
            return {name for answer in control.ping(timeout=2, limit=2) for name in answer}

        wait_for(lambda: answers() == names, "both answer")
        revoked = [queues.send("late", countdown=2) for _ in range(4)]
        waiting = [queues.send("late", countdown=2) for _ in range(4)]
        wait_for(
            lambda: scheduled(ours) | scheduled(stock) >= {*revoked, *waiting}, "all are taken"
        )
        control.revoke(revoked)
        queues.wait_done(*waiting)

        assert Counter(queues.started()) == Counter(waiting)


def test_broadcast(queues):
    """What is sent to all workers each of them gets, once."""
    queues = queues()
    # As a user's module would say it.
    news = "__import__('kombu.common').common.Broadcast('news')"
    conf = f"task_queues=({news},)"
    ours = queues.worker("batched", "-Q", "news", conf=conf)
    with ours, queues.worker("stock", "-c", 2, "-Q", "news", conf=conf) as stock:
        options = {"exchange": "news", "routing_key": "b-queue"}
        options["declare"] = [kombu.Exchange("news", "fanout")]
        sent = [queues.send("late", **options) for _ in range(10)]
        queues.wait_started(*sent, times=2)
        queues.wait_done()

        for worker in (ours, stock):
            assert sorted(line["id"] for line in worker.records("started")) == sorted(sent)


@kinds
def test_cancelled_queue(queues, kind):
    """A queue that a worker no longer consumes keeps its messages, until it does again."""
    queues = queues()
    worker = queues.worker(kind, "-c", 2, "--prefetch-multiplier", 8)
    control = worker.client.app.control
    sent = []
    with worker:
        for _ in range(5):
            sent += [queues.send("late", queue=name) for name in queues.names for _ in range(20)]
            control.cancel_consumer("a-queue", reply=True, timeout=10, limit=1)
            sent += [queues.send("late", queue=name) for name in queues.names for _ in range(5)]
            wait_for(lambda: queues.client.llen("b-queue") == 0, worker.tail)
            wait_for(lambda: queues.client.hlen("unacked") == 0, worker.tail)
            # One may have been on its way, and comes back.
            wait_for(lambda: queues.client.llen("a-queue") >= 5, worker.tail)
            control.add_consumer("a-queue", reply=True, timeout=10, limit=1)
        queues.wait_done(*sent)

        assert Counter(queues.started()) == Counter(sent)


@kinds
@pytest.mark.parametrize("multiplier", [1, 8])
def test_order_of_what_comes(queues, kind, multiplier):
    """What comes to an idle worker runs in the order in which it was sent."""
    queues = queues()
    worker = queues.worker(kind, "-c", 1, "--prefetch-multiplier", multiplier)
    with worker:
        sent = []
        for burst in range(40):
            sent += [queues.send("late") for _ in range(1 + burst % 4)]
            if burst % 3:
                queues.wait_done(*sent)
        queues.wait_done(*sent)

        assert queues.started() == sent


@kinds
def test_no_prefetch_limit(queues, kind):
    """With a multiplier of 0 a worker takes all that there is."""
    queues = queues()
    worker = queues.worker(kind, "-c", 2, "--prefetch-multiplier", 0)
    sent = [queues.send("late", priority=number % 10) for number in range(300)]
    with worker:
        queues.wait_done(*sent)

        assert Counter(queues.started()) == Counter(sent)


@kinds
def test_many_queues(queues, kind):
    """A worker may consume more queues than it would watch one by one."""
    queues = queues()
    queues.names = tuple(f"queue-{number}" for number in range(20))
    with queues.worker(kind, "-c", 2):
        for _ in range(2):  # the second time it is idle
            sent = [queues.send("late", queue=name) for name in queues.names]
            queues.wait_done(*sent)


def scheduled(worker):
    return {entry["request"]["id"] for entry in worker.inspect("scheduled")}


@kinds
def test_rate_limit(queues, kind):
    """A rate limit holds for messages that came together."""
    queues = queues()
    limited = queues.worker(kind, "-c", 10)
    sent = [queues.send("limited") for _ in range(6)]
    with limited:
        queues.wait_done(*sent)

        assert Counter(queues.started()) == Counter(sent)
        first = min(line["at"] for line in limited.records("received"))
        assert max(line["at"] for line in limited.records("started")) >= first + 0.6


@pytest.mark.parametrize("end", ["warm shutdown", "kill"])
def test_switched_back(queues, end, tmp_path):
    """A worker that is restarted without batches goes on with the same keys, and so back again."""
    queues = queues(**VISIBILITY)
    gate = tmp_path / "gate"
    worker = queues.worker("batched", "-c", 2, "--prefetch-multiplier", 5)
    batching = worker.environment["BATCHES_CONF"]
    assert "asyncpool_redis_batching=True" in batching
    plain = batching.replace("batching=True", "batching=False")
    with worker:
        sent = []
        for environment in (plain, batching):
            gate.unlink(missing_ok=True)
            sent += [queues.send("hold_late", str(gate)) for _ in range(8)]
            wait_for(lambda: queues.left() == (0, 8), lambda: f"left: {queues.left()}")
            if end == "kill":
                kill(worker)
                gate.touch()
                wait_for_restore(queues)
            else:
                worker.process.send_signal(signal.SIGTERM)
                worker.wait_log("worker: Warm shutdown")
                gate.touch()
                worker.wait_exit()
            worker.environment["BATCHES_CONF"] = environment
            worker.restart()
            queues.wait_done(*sent, what="ended")

        assert sorted(line["id"] for line in worker.records("ended")) == sorted(sent)
