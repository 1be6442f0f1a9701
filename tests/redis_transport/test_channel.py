"""celery_asyncpool/redis_transport/channel.py: kombu's promises, on a real Redis."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from types import SimpleNamespace

import pytest
from kombu import Connection
from kombu.asynchronous import Hub, set_event_loop

from celery_asyncpool.redis_transport import batched, channel
from celery_asyncpool.redis_transport.ledger import SHORTEST, Contention, Shared

from ..servers import RedisServer
from .conftest import DATABASE, Receiver, declare, publish, ready, unacked

SEP = "\x06\x16"


def commands(redis, name):
    """How many of a command Redis has been sent."""
    return redis.info("commandstats").get(f"cmdstat_{name}", {"calls": 0})["calls"]


def order(connect, shared, queues, **options):
    """The order in which messages of three queues and four priorities arrive."""
    connection = connect(shared, **options)
    receiver = Receiver(connection, *queues)
    return receiver.drain(24)


def fail(*args, **kwargs):
    raise ConnectionResetError("cut")


# Taking.


def test_messages_come_in_batches(connect, redis):
    """In their order, with few commands; Redis keeps them until they are acknowledged."""
    shared = Shared()
    publish(connect(), "q", *range(100))
    before = commands(redis, "eval")

    receiver = Receiver(connect(shared), "q")

    assert receiver.drain(100) == list(range(100))
    assert commands(redis, "eval") - before <= 5
    assert shared.info()["messages-per-batch"]["max"] == 100 - 8 - 16 - 32
    assert len(unacked(redis)) == 100


def test_what_is_kept_is_what_kombu_keeps(connect, redis):
    """Entry by entry, so that any worker can restore them."""
    kept = []
    for shared in (Shared(), False):
        publish(connect(), "q", {"a": [1, "\u2603"]}, headers={"x": None}, priority=3)
        connection = connect(shared)
        receiver = Receiver(connection, "q")
        receiver.drain(1)
        [(tag, entry)] = redis.hgetall("unacked").items()
        assert abs(redis.zscore("unacked_index", tag) - time.time()) < 60
        kept.append(json.loads(entry.replace(tag, b"tag")))
        receiver.messages[0].ack()
        connection.close()

    assert kept[0] == kept[1]
    assert unacked(redis) == []


def test_idle_consumer_hears_of_a_message(connect, redis):
    """Of any priority; one that comes after the queues were empty is not waited for."""
    shared = Shared()
    receiver = Receiver(connect(shared), "q", "r")
    receiver.turn()

    for number, (queue, priority) in enumerate([("q", 0), ("r", 9), ("q", 3), ("q", 0)], 1):
        publish(connect(), queue, number, priority=priority)
        assert receiver.drain(number)[-1] == number

    assert shared.info()["batches"] == 4


@pytest.fixture
def clock(monkeypatch):
    """The channels' clock, which goes on when it is told to."""
    clock = SimpleNamespace(monotonic=lambda: clock.now, time=time.time, now=1000.0)
    monkeypatch.setattr(channel, "time", clock)
    return clock


def watched(redis):
    """How many lists are watched, by all clients together."""
    clients = [client for client in redis.client_list() if client["db"] == str(DATABASE)]
    return sum("b" in client["flags"] for client in clients)


def test_who_comes_too_late_stays_away(connect, redis, clock):
    """So that not all workers of a fleet look for each message; then it watches again."""
    shared = Shared()
    publish(connect(), "q", 0)  # makes the queue
    early, late = (Receiver(connect(shared), "q") for _ in range(2))
    early.drain(1)
    late.channel._contention = Contention(lambda low, high: high)
    early.settle(lambda: watched(redis) == 4)
    late.settle(lambda: watched(redis) == 8)

    publish(connect(), "q", 1)
    assert early.drain(2) == [0, 1]
    late.settle(lambda: shared.info()["empty-batches"] == 2)  # at its start, and now
    for message in early.messages:
        message.ack()
    early.connection.close()
    late.turn()
    assert watched(redis) == 3
    publish(connect(), "q", 2)
    late.turn()
    assert late.payloads == []

    clock.now += SHORTEST

    assert late.drain(1) == [2]


@pytest.fixture
def hub():
    hub = Hub()
    set_event_loop(hub)
    yield hub
    set_event_loop(None)
    hub.close()


def test_a_fleet_in_the_hub(connect, hub):
    """Each message arrives once, and the hub turns when those who stayed away come back."""
    shared = Shared()
    publisher = connect()
    publish(publisher, "q")
    receivers = [Receiver(connect(shared), "q") for _ in range(5)]
    for receiver in receivers:
        receiver.connection.register_with_event_loop(hub)
    turns = hub.create_loop()
    has_timer = False
    for number in range(100):
        publish(publisher, "q", number)
        while sum(len(receiver.messages) for receiver in receivers) <= number:
            next(turns)
            has_timer |= any(entry.fun == channel._turn for *_, entry in hub.timer.queue)

    got = [receiver.payloads for receiver in receivers]
    assert sorted(number for payloads in got for number in payloads) == list(range(100))
    assert shared.info()["empty-batches"] > len(receivers)
    assert has_timer


def test_the_wait_leaves_the_queue_as_it_is(connect, redis):
    """Consumers without room wake up and take nothing, whatever the order is."""
    receivers = [Receiver(connect(), "q", prefetch=1) for _ in range(3)]
    publish(connect(), "q", *"abc")
    for receiver in receivers:
        receiver.drain(1)
    publish(connect(), "q", *"defg")

    for receiver in receivers:
        receiver.turn()

    assert sorted(receiver.payloads[0] for receiver in receivers) == ["a", "b", "c"]
    assert ready(redis, "q") == list("defg")


@pytest.mark.parametrize("strategy", ["round_robin", "priority", "sorted"])
def test_order_is_that_of_kombu(connect, redis, strategy):
    """Priorities first, then queues in turns, or by name, or as they were given."""
    found = []
    for shared in (False, Shared()):
        redis.flushdb()
        for number in range(24):
            queue, priority = "bac"[number % 3], (0, 3, 6, 9)[number * 7 % 4]
            publish(connect(), queue, f"{queue}{priority}-{number}", priority=priority)
        found.append(order(connect, shared, ["b", "a", "c"], queue_order_strategy=strategy))
        assert len(unacked(redis)) == 24

    if strategy == "round_robin":  # kombu before 5.7 begins with any of them
        found = [[text[1:2] for text in texts] for texts in found]
    assert found[0] == found[1]


def test_queues_take_turns(connect):
    """A queue with many messages does not keep those of another one back."""
    publish(connect(), "many", *range(50))
    publish(connect(), "few", *"abc")

    found = Receiver(connect(), "many", "few").drain(53)

    assert {"a", "b", "c"} <= set(found[:7])


def test_own_steps_and_separator(connect, redis):
    """`priority_steps` and `sep` name the lists."""
    options = {"priority_steps": [0, 5], "sep": ":"}
    with connect(False, **options) as producer:
        publish(producer, "q", "low", priority=7)
        publish(producer, "q", "high", priority=1)
    assert set(redis.keys("q*")) == {b"q", b"q:5"}

    assert Receiver(connect(**options), "q").drain(2) == ["high", "low"]


class OwnStrategy:
    """Takes from the queue with the longest name."""

    def __init__(self):
        self.items = []

    def update(self, items):
        self.items[:] = items

    def consume(self, n):
        return sorted(self.items, key=len, reverse=True)[:n]

    def rotate(self, last):
        """Nothing."""


def test_strategy_of_the_user(connect):
    """It is asked before each message."""
    shared = Shared()
    publish(connect(), "q", 1, 2)
    publish(connect(), "longer", 3, 4)

    receiver = Receiver(connect(shared, queue_order_strategy=OwnStrategy), "q", "longer")

    assert receiver.drain(4) == [3, 4, 1, 2]
    assert shared.info()["messages-per-batch"]["max"] == 1


def test_prefix(connect, redis):
    """All keys have it."""
    options = {"global_keyprefix": "mine:"}
    publish(connect(False, **options), "q", *range(10))
    receiver = Receiver(connect(**options), "q")
    receiver.drain(10)
    assert unacked(redis, "mine:") == list(range(10))

    for message in receiver.messages[:9]:
        message.ack()
    receiver.settle(lambda: unacked(redis, "mine:") == [9])

    assert all(key.startswith(b"mine:") for key in redis.keys())


def test_no_more_than_there_is_room_for(connect, redis):
    """The prefetch bounds what is taken; each ack makes room for one."""
    publish(connect(), "q", *range(20))
    receiver = Receiver(connect(), "q", prefetch=6)
    receiver.drain(6)
    receiver.turn()
    assert (unacked(redis), len(ready(redis, "q"))) == ([0, 1, 2, 3, 4, 5], 14)

    receiver.messages[0].ack()
    receiver.messages[3].ack()
    receiver.drain(8)
    receiver.turn()

    assert unacked(redis) == [1, 2, 4, 5, 6, 7]
    assert ready(redis, "q") == list(range(8, 20))


def test_who_counts_himself_is_asked_each_time(connect, redis):
    """As `worker_disable_prefetch` does, in the place of kombu's own method."""
    shared = Shared()
    publish(connect(), "q", *range(20))
    receiver = Receiver(connect(shared), "q")
    receiver.channel.qos.can_consume = lambda: len(receiver.messages) < 3

    receiver.drain(3)
    receiver.turn()

    assert unacked(redis) == [0, 1, 2]
    assert shared.info()["messages-per-batch"]["max"] == 1


def test_consumer_of_another_queue_joins_and_leaves(connect, redis):
    """What was taken for one that has left goes back to the front of its queue."""
    receiver = Receiver(connect(), "q")
    receiver.turn()
    receiver.consumer.add_queue(declare(receiver.channel, "r"))
    receiver.consumer.consume()
    publish(connect(), "r", *range(5))
    assert receiver.drain(1) == [0]

    receiver.consumer.cancel_by_queue("r")
    publish(connect(), "q", "next")
    receiver.settle(lambda: "next" in receiver.payloads)

    assert receiver.payloads == [0, "next"]
    assert sorted(ready(redis, "r")) == [1, 2, 3, 4]
    assert unacked(redis) == [0, "next"]


def test_consumer_that_does_not_acknowledge(connect, redis):
    """It is served in kombu's way: nothing has to be kept for it."""
    shared = Shared()
    publish(connect(), "q", *range(10))
    receiver = Receiver(connect(shared), "q", no_ack=True)

    assert receiver.drain(10) == list(range(10))

    assert unacked(redis) == []
    assert (shared.info()["batches"], shared.info()["fallbacks"]) == (0, {})


def test_consumer_that_does_not_acknowledge_beside_one_that_does(connect, redis):
    """Nothing stays behind of what it was given, whoever came first."""
    publish(connect(), "q", *range(10))
    receiver = Receiver(connect(), "q", no_ack=True)
    receiver.drain(2)
    receiver.consumer.no_ack = False
    receiver.consumer.add_queue(declare(receiver.channel, "r"))
    receiver.consumer.consume()
    publish(connect(), "r", *"abc")

    receiver.drain(13)

    assert receiver.channel.is_batching
    receiver.settle(lambda: unacked(redis) == ["a", "b", "c"])


def test_beside_a_consumer_of_kombu(connect, redis):
    """They share a queue: each message goes to one of them."""
    publish(connect(), "q", *range(200))
    ours = Receiver(connect(), "q", prefetch=20)
    stock = Receiver(connect(False), "q", prefetch=20)

    while len(ours.messages) + len(stock.messages) < 200:
        for receiver in (ours, stock):
            with contextlib.suppress(TimeoutError):
                receiver.connection.drain_events(timeout=0.01)
            for message in receiver.messages:
                if not message.acknowledged:
                    message.ack()

    assert sorted(ours.payloads + stock.payloads) == list(range(200))
    assert ours.messages
    assert stock.messages
    ours.settle(lambda: unacked(redis) == [])


def test_message_of_another_producer(connect, redis, caplog):
    """One without the fields of kombu's is handed over as kombu does, which is said once."""
    shared = Shared()
    publish(connect(), "q", "ours")
    raw = json.loads(redis.lindex("q", 0))
    raw["properties"]["delivery_tag"] = 17
    for _ in range(2):
        redis.lpush("q", json.dumps(raw))

    receiver = Receiver(connect(shared), "q")
    assert receiver.drain(3) == ["ours"] * 3
    for message in receiver.messages:
        message.ack()
    receiver.settle(lambda: unacked(redis) == [])

    reason = "a message without the fields that kombu writes"
    assert caplog.text.count(reason) == 1
    assert shared.info()["fallbacks"] == {reason: 2}
    assert shared.info()["batching"]


@pytest.mark.parametrize("garbage", [b'"x": 0x1F, ', b'"x": NaN1, '])
def test_message_that_cannot_be_read(connect, redis, caplog, garbage):
    """It is named in the log and dropped; left to be restored it would stop all restores."""
    publish(connect(), "q", "good")
    raw = redis.lindex("q", 0).replace(b'"properties"', garbage + b'"properties"')
    redis.rpush("q", raw.replace(b'"delivery_tag": "', b'"delivery_tag": "x'))

    receiver = Receiver(connect(), "q")
    assert receiver.drain(1) == ["good"]

    assert "dropped an unreadable message: q" in caplog.text
    receiver.settle(lambda: redis.hlen("unacked") == 1)
    assert unacked(redis) == ["good"]


# Acknowledging.


def test_acks_leave_together(connect, redis):
    """With the next turn, in one command."""
    publish(connect(), "q", *range(10))
    receiver = Receiver(connect(), "q")
    receiver.drain(10)
    receiver.turn()
    before = commands(redis, "eval")

    for message in receiver.messages:
        message.ack()
    assert len(unacked(redis)) == 10
    receiver.turn()

    assert unacked(redis) == []
    assert commands(redis, "eval") == before + 1


def test_reject(connect, redis):
    """Dropped, or back in its queue at once."""
    publish(connect(), "q", "drop", "again")
    receiver = Receiver(connect(), "q", prefetch=2)
    receiver.drain(2)

    receiver.messages[0].reject()
    receiver.messages[1].requeue()
    receiver.drain(3)

    assert receiver.payloads == ["drop", "again", "again"]
    assert receiver.messages[2].headers["redelivered"] is True
    assert unacked(redis) == ["again"]


def test_ack_does_not_take_from_a_new_owner(connect, redis):
    """A message that was restored meanwhile belongs to who has it now."""
    publish(connect(), "q", "slow")
    slow = Receiver(connect(visibility_timeout=60), "q")
    slow.drain(1)
    redis.zincrby("unacked_index", -61, slow.messages[0].delivery_tag)  # a minute later
    owner = Receiver(connect(visibility_timeout=60), "q")
    owner.channel.qos.restore_visible(interval=1)
    # Whoever gets it now, the first ack of the former owner is none of it.
    slow.consumer.cancel()
    owner.drain(1)

    slow.messages[0].ack()
    slow.turn()

    assert unacked(redis) == ["slow"]
    owner.messages[0].ack()
    owner.settle(lambda: unacked(redis) == [])


# Connections that break.


def test_ack_that_could_not_be_sent(connect, redis):
    """The next connection sends it."""
    shared = Shared()
    publish(connect(), "q", *range(3))
    connection = connect(shared)
    receiver = Receiver(connection, "q")
    receiver.drain(3)
    receiver.messages[0].ack()
    # Nobody can reach the server when the connection is given up.
    connection.transport.cycle.close()
    receiver.channel._is_broken = True
    receiver.channel.qos._on_collect.cancel()
    receiver.channel.settle()
    receiver.messages[1].ack()
    assert unacked(redis) == [0, 1, 2]

    again = Receiver(connect(shared), "q")
    again.settle(lambda: unacked(redis) == [2])


def test_ack_of_an_earlier_connection_at_the_end(connect, redis):
    """It is sent by the last one, which consumes no more."""
    shared = Shared()
    publish(connect(), "q", 1)
    connection = connect(shared)
    receiver = Receiver(connection, "q")
    receiver.drain(1)
    receiver.channel._is_broken = True
    receiver.channel.qos._on_collect.cancel()
    receiver.channel.settle()
    again = Receiver(connect(shared), "q")
    again.turn()
    again.consumer.cancel()

    receiver.messages[0].ack()
    again.connection.close()

    assert unacked(redis) == []


def test_server_that_cannot_be_reached_for_a_moment(connect, redis):
    """What was to be sent waits for the connection; nothing counts as sent before."""
    publish(connect(), "q", *range(4))
    connection = connect()
    receiver = Receiver(connection, "q", prefetch=2)
    receiver.drain(2)
    receiver.turn()
    work, cycle = receiver.channel._work, connection.transport.cycle
    receiver.channel._close_line(work)
    watch, cycle.watch = cycle.watch, fail
    receiver.messages[0].ack()
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            connection.drain_events(timeout=1)

    cycle.watch = watch
    receiver.drain(3)
    receiver.messages[1].ack()
    receiver.drain(4)

    receiver.settle(lambda: unacked(redis) == [2, 3])
    assert repr(receiver.channel.ledger) == "<Ledger 0 arriving, 2 held, 0 acks wait, 0 sent>"


def test_batch_whose_reply_is_lost(connect, redis):
    """It goes back to its queue with the next connection, and arrives."""
    shared = Shared()
    publish(connect(), "q", *range(5))
    connection = connect(shared)
    receiver = Receiver(connection, "q")
    connection.transport.cycle.on_poll_start()
    receiver.channel._work.connection.read_response = fail

    with pytest.raises(ConnectionResetError):
        receiver.drain(1)
    assert len(unacked(redis)) == 5
    connection.close()

    again = Receiver(connect(shared), "q")
    assert sorted(again.drain(5)) == list(range(5))
    assert len(unacked(redis)) == 5
    assert ready(redis, "q") == []


def cut_others(redis):
    """End all connections to this database but *redis*' own; others have theirs elsewhere."""
    own = redis.client_info()
    for client in redis.client_list():
        if client["db"] == str(own["db"]) and client["id"] != str(own["id"]):
            redis.client_kill_filter(_id=client["id"])


def test_cut_connections(connect, redis):
    """A consumer that goes on with the same connection gets everything."""
    connection = connect()
    receiver = Receiver(connection, "q")
    for number in range(5):
        receiver.turn()
        cut_others(redis)
        publish(connect(), "q", number)
        while len(receiver.messages) <= number:
            with contextlib.suppress(*connection.connection_errors):
                connection.drain_events(timeout=60)

    assert receiver.payloads == list(range(5))
    for message in receiver.messages:
        message.ack()
    receiver.settle(lambda: unacked(redis) == [])


def test_idle_line_that_redis_has_closed(connect, redis):
    """It is made anew when it is needed."""
    publish(connect(), "q", 1)
    connection = connect()
    receiver = Receiver(connection, "q")
    receiver.drain(1)
    receiver.turn()
    work = receiver.channel._work
    redis.client_kill_filter(laddr=None, addr=":".join(map(str, work.sock.getsockname())))
    receiver.settle(lambda: work.connection is None)

    receiver.messages[0].ack()
    receiver.settle(lambda: unacked(redis) == [])


def test_overdue_reply(connect, redis, caplog):
    """A connection whose other end says nothing is made anew, and nothing is lost."""
    publish(connect(), "q", 1)
    connection = connect()
    receiver = Receiver(connection, "q")
    receiver.channel.health_check_interval = 0.01
    redis.client_pause(300)
    connection.transport.cycle.on_poll_start()
    time.sleep(0.05)

    receiver.channel.check_lines()

    assert "Redis did not reply" in caplog.text
    assert receiver.drain(1) == [1]
    assert unacked(redis) == [1]


def test_server_without_memory(connect, redis, caplog):
    """It cannot tell when a message comes, so it is asked each second."""
    receiver = Receiver(connect(), "q")
    receiver.channel.qos.restore_visible = lambda **kwargs: None  # kombu writes a lock
    publish(connect(), "q", *range(3))
    redis.config_set("maxmemory", 1)
    try:
        receiver.drain(3)
        receiver.settle(lambda: "cannot tell when a message comes" in caplog.text)
        redis.config_set("maxmemory", 0)
        publish(connect(), "q", "more")
        assert receiver.drain(4)[-1] == "more"
    finally:
        redis.config_set("maxmemory", 0)


# The end.


def test_close_gives_back(connect, redis):
    """What is not acknowledged, handed over or only taken, is there for others."""
    publish(connect(), "q", *range(10))
    connection = connect()
    receiver = Receiver(connection, "q")
    receiver.drain(3)
    receiver.messages[0].ack()

    connection.close()

    assert unacked(redis) == []
    assert sorted(ready(redis, "q")) == list(range(1, 10))


def test_close_while_a_batch_is_asked_for(connect, redis):
    """The reply is waited for, so that its messages can go back."""
    publish(connect(), "q", *range(5))
    connection = connect()
    Receiver(connection, "q")
    connection.transport.cycle.on_poll_start()

    connection.close()

    assert unacked(redis) == []
    assert sorted(ready(redis, "q")) == list(range(5))


def test_close_without_restore(connect, redis):
    """`do_restore` off: what was handed over stays unacknowledged, and only that."""
    publish(connect(), "q", *range(5))
    connection = connect()
    receiver = Receiver(connection, "q")
    receiver.channel.do_restore = False
    receiver.drain(2)

    connection.close()

    assert unacked(redis) == [0, 1]
    assert sorted(ready(redis, "q")) == [2, 3, 4]


# Kombu's way.


@pytest.fixture
def acl(redis, url):
    """Makes a user whom Redis refuses something, and the URL for it."""
    users = []

    def acl(*rules):
        users.append(f"user-{len(users)}")
        redis.execute_command(
            "ACL", "SETUSER", users[-1], "on", ">secret", "~*", "&*", "+@all", *rules
        )
        return url.replace("://", f"://{users[-1]}:secret@")

    yield acl
    for user in users:
        redis.execute_command("ACL", "DELUSER", user)


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (["-@scripting"], "Redis refuses the script"),
        (["-eval"], "Redis refuses the script"),
        (["-blmove", "-brpoplpush"], "Redis refuses BRPOPLPUSH"),
    ],
)
def test_what_redis_refuses(connect, redis, acl, caplog, rules, reason):
    """The worker goes on in kombu's way for good, and says so once."""
    shared = Shared()
    for _ in range(2):
        publish(connect(), "q", *range(5))
        receiver = Receiver(connect(shared, url=acl(*rules)), "q")
        receiver.drain(5)
        receiver.settle(lambda: not shared.info()["batching"])
        for message in receiver.messages:
            message.ack()
        receiver.settle(lambda: unacked(redis) == [])
        receiver.connection.close()

    assert ready(redis, "q") == []
    assert caplog.text.count(reason) == 1
    assert shared.info()["reason"].startswith(reason)


def test_redis_without_blmove(connect, redis, acl):
    """Before 6.2 another command waits for messages."""
    shared = Shared()
    receiver = Receiver(connect(shared, url=acl("-blmove")), "q")
    receiver.turn()

    for number in range(3):
        publish(connect(), "q", number)
        receiver.drain(number + 1)

    assert receiver.payloads == [0, 1, 2]
    assert shared.info()["batching"]
    assert commands(redis, "brpoplpush")


def test_too_many_lists(connect, redis, caplog):
    """Each would need a connection."""
    shared = Shared()
    publish(connect(), "q16", "far")

    receiver = Receiver(connect(shared), *(f"q{number}" for number in range(17)))

    assert receiver.drain(1) == ["far"]
    assert "more than 64 lists to watch" in caplog.text
    receiver.messages[0].ack()
    assert unacked(redis) == []


def test_without_ack_emulation(connect, redis, caplog):
    """Without kombu's unacknowledged messages there is nothing to move them to."""
    publish(connect(), "q", *range(3))
    receiver = Receiver(connect(ack_emulation=False), "q")

    with caplog.at_level(logging.WARNING):
        receiver.drain(3)

    assert "ack_emulation is off" in caplog.text
    assert unacked(redis) == []


# Kinds of connections.


class SocketServer(RedisServer):
    """A Redis with a unix socket."""

    def _command(self):
        return [*super()._command(), "--unixsocket", str(self.folder / "redis.sock")]


def test_unix_socket():
    """Batches go through it."""
    shared = Shared()
    with (
        SocketServer() as server,
        batched(Connection(f"redis+socket://{server.folder}/redis.sock"), shared) as connection,
    ):
        publish(connection, "q", *range(10))
        receiver = Receiver(connection, "q")
        assert receiver.drain(10) == list(range(10))
        for message in receiver.messages:
            message.ack()
        receiver.settle(lambda: not receiver.channel._create_client().exists("unacked"))

    assert shared.info()["messages"] == 10


def test_limit_of_connections(connect):
    """The lines come on top of what kombu may have."""
    publish(connect(), "q", 1)

    assert Receiver(connect(max_connections=2), "q", "r", "s").drain(1) == [1]


def test_clients_are_kept(connect):
    """A channel has one client, until it has another pool of connections."""
    channel = connect().channel()

    client = channel._create_client()
    assert channel._create_client() is client
    assert channel._create_client(asynchronous=True) is not client

    channel._disconnect_pools()
    assert channel._create_client() is not client
    assert channel._create_client().ping()
