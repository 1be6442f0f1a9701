"""celery_asyncpool/redis_transport/scripts.py: what happens in Redis, against a model of it."""

from __future__ import annotations

import json
from collections import deque

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from kombu.utils.scheduling import priority_cycle, round_robin_cycle

from celery_asyncpool.redis_transport.scripts import (
    ack_command,
    find_command,
    parse_taken,
    take_command,
)

QUEUES = ["a", "b", "c"]
STEPS = ["", "3", "6"]
KEYS = ("unacked", "unacked_index")


def message(tag, exchange="ex", routing_key="rk", **more):
    delivery = {"exchange": exchange, "routing_key": routing_key}
    properties = {"delivery_tag": tag, "delivery_info": delivery, **more}
    return json.dumps({"body": "x", "properties": properties}).encode()


def take(redis, lists, queues, **options):
    options = {"score": "1.5", "most": 64, "room": 1 << 20, "turns": True, **options}
    reply = redis.execute_command(*take_command(*KEYS, lists, queues, **options))
    return parse_taken(reply, queues)


class Model(RuleBasedStateMachine):
    """Producers, and two workers that take, acknowledge and restore."""

    redis = None

    @initialize(turns=st.booleans())
    def start(self, turns):
        self.redis.flushdb()
        self.turns = turns
        self.cycles = [self.new_cycle(), self.new_cycle()]
        self.lists = {queue + step: deque() for step in STEPS for queue in QUEUES}
        self.unacked = {}  # tag -> (list, score)
        self.taken = [{}, {}]  # of each worker: tag -> score
        self.count = 0
        self.acked = 0

    def new_cycle(self):
        return (round_robin_cycle if self.turns else priority_cycle)(list(QUEUES))

    @rule(queue=st.sampled_from(QUEUES), step=st.sampled_from(STEPS), count=st.integers(1, 4))
    def push(self, queue, step, count):
        for _ in range(count):
            self.count += 1
            tag = f"tag-{self.count}"
            self.lists[queue + step].append(tag)
            self.redis.lpush(queue + step, message(tag))

    @rule(worker=st.sampled_from([0, 1]), most=st.integers(0, 12))
    def take(self, worker, most):
        """As many BRPOPs as messages would have brought the same ones, in this order."""
        cycle = self.cycles[worker]
        queues = cycle.consume(len(QUEUES))
        lists = [queue + step for step in STEPS for queue in queues]
        score = repr(float(self.count) + worker / 4 + len(self.taken[worker]) / 1000)

        taken = take(self.redis, lists, len(queues), score=score, most=most, turns=self.turns)

        names = list(queues)
        for number, raw, stored_as in taken.messages:
            queue, tag = self.pop(cycle)
            assert (names[number], raw, stored_as) == (queue, message(tag), tag.encode())
            self.unacked[tag] = score
            self.taken[worker][tag] = score
        assert taken.is_more is (len(taken.messages) == most)
        if not taken.is_more:
            assert not any(self.lists.values())

    def pop(self, cycle):
        """One BRPOP, as kombu makes it."""
        for step in STEPS:
            for queue in cycle.consume(len(QUEUES)):
                if self.lists[queue + step]:
                    tag = self.lists[queue + step].popleft()
                    cycle.rotate(queue)
                    return queue, tag
        raise AssertionError("there was no message")

    @rule(worker=st.sampled_from([0, 1]), data=st.data())
    def ack(self, worker, data):
        """What is not the worker's any more stays."""
        if not self.taken[worker]:
            return
        tags = data.draw(st.sets(st.sampled_from(sorted(self.taken[worker])), min_size=1))
        acks = [(tag, self.taken[worker].pop(tag)) for tag in sorted(tags)]

        others = self.redis.execute_command(*ack_command(*KEYS, acks))

        mine = [tag for tag, score in acks if self.unacked.get(tag) == score]
        assert others == sum(tag in self.unacked for tag, _ in acks) - len(mine)
        for tag in mine:
            del self.unacked[tag]
            self.acked += 1

    @rule(data=st.data(), queue=st.sampled_from(QUEUES))
    def restore(self, data, queue):
        """The visibility timeout of one message is over; kombu pushes it to the front."""
        if not self.unacked:
            return
        tag = data.draw(st.sampled_from(sorted(self.unacked)))
        del self.unacked[tag]
        self.redis.hdel("unacked", tag)
        self.redis.zrem("unacked_index", tag)
        self.redis.rpush(queue, message(tag))
        self.lists[queue].appendleft(tag)

    @invariant()
    def redis_is_as_the_model(self):
        if not hasattr(self, "lists"):
            return
        for key, tags in self.lists.items():
            assert self.redis.lrange(key, 0, -1) == [message(tag) for tag in reversed(tags)]
        stored = {
            tag.decode(): json.loads(raw) for tag, raw in self.redis.hgetall(KEYS[0]).items()
        }
        assert stored == {tag: [json.loads(message(tag)), "ex", "rk"] for tag in self.unacked}
        index = dict(self.redis.zrange(KEYS[1], 0, -1, withscores=True))
        assert index == {tag.encode(): float(score) for tag, score in self.unacked.items()}
        # Every message is in one place, or acknowledged.
        ready = sum(map(len, self.lists.values()))
        assert ready + len(self.unacked) + self.acked == self.count


def test_bookkeeping_against_a_model(redis):
    """Whatever producers and workers do, each message is in one place, in kombu's order."""
    Model.redis = redis
    run_state_machine_as_test(
        Model,
        settings=settings(
            max_examples=60,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize(
    ("exchange", "routing_key"),
    [
        ("", "q"),
        ("e", None),
        ("sl/ash", 'quo"te'),
        ("snow\u2603", "back\\slash"),
        ("\u0007", "\n"),
    ],
)
def test_what_is_stored(redis, exchange, routing_key):
    """The message as it was, and where it came from, as kombu would read it."""
    raw = message("t\u00e4g", exchange, routing_key)
    redis.lpush("a", raw)

    assert take(redis, ["a"], 1).messages == [(0, raw, "t\u00e4g".encode())]

    [(tag, stored)] = redis.hgetall("unacked").items()
    assert tag.decode() == "t\u00e4g"
    assert json.loads(stored) == [json.loads(raw), exchange, routing_key]
    assert redis.zscore("unacked_index", "t\u00e4g") == 1.5


@pytest.mark.parametrize(
    "raw",
    [
        b"not json",
        b"[]",
        b'"text"',
        b'{"body": "x"}',
        b'{"properties": {"delivery_tag": "t"}}',
        b'{"properties": {"delivery_tag": "t", "delivery_info": {"exchange": "e"}}}',
        message(17),
        message("t", exchange=5),
        b"[" * 2000 + b"]" * 2000,
    ],
)
def test_foreign_message(redis, raw):
    """One that cannot be stored is returned and said to be so; its neighbours are stored."""
    redis.lpush("a", message("before"), raw, message("after"))

    taken = take(redis, ["a"], 1)

    assert taken.messages == [
        (0, message("before"), b"before"),
        (0, raw, None),
        (0, message("after"), b"after"),
    ]
    assert set(redis.hkeys("unacked")) == {b"before", b"after"}


def test_room(redis):
    """A batch ends when it is large enough, but has one message at least."""
    for number in range(4):
        redis.lpush("a", message(str(number), filler="x" * 1000))

    sizes = [len(take(redis, ["a"], 1, room=room).messages) for room in (1, 1500)]

    assert sizes == [1, 2]
    assert redis.llen("a") == 1


@pytest.mark.parametrize("key", KEYS)
def test_key_of_another_type(redis, key):
    """Nothing is popped where it cannot be stored."""
    redis.set(key, "a string")
    redis.lpush("a", message("t"))

    with pytest.raises(Exception, match="WRONGTYPE"):
        take(redis, ["a"], 1)

    assert redis.llen("a") == 1


def test_server_without_memory(redis):
    """Messages are taken, since that makes room in the end."""
    for number in range(5):
        redis.lpush("a", message(str(number)))
    redis.config_set("maxmemory", 1)
    try:
        taken = take(redis, ["a"], 1)
    finally:
        redis.config_set("maxmemory", 0)

    assert len(taken.messages) == redis.hlen("unacked") == redis.zcard("unacked_index") == 5


def test_ack_of_a_message_without_a_score(redis):
    """What the index does not know nobody has."""
    redis.hset("unacked", "t", "[]")

    assert redis.execute_command(*ack_command(*KEYS, [("t", "1.5")])) == 0
    assert not redis.exists("unacked")


def test_find(redis):
    """The messages of one batch are found by their score, to the last digit."""
    redis.zadd("unacked_index", {"a": 1800000000.1234567, "b": 1800000000.1234569})

    assert redis.execute_command(*find_command(KEYS[1], repr(1800000000.1234567))) == [b"a"]
