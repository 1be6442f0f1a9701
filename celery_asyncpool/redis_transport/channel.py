"""kombu's Redis channels, with batches.

A channel asks for messages while its queues have any. When they are empty it
arms a bell for each list, and asks again when one rings; where others are faster,
it leaves the bells alone for a moment. It acknowledges what has come up since with
the next turn of the loop. Neither waits for a reply.

Where something cannot be done so, kombu's own code does it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from queue import Empty
from typing import Any, NamedTuple

import kombu.transport.redis
import redis
from celery.utils.log import get_logger
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads
from kombu.utils.scheduling import priority_cycle, round_robin_cycle, sorted_cycle

from .ledger import Contention, Ledger, Lost, Ramp, Scores, Shared
from .lines import Bell, Line, Reply, is_refusal
from .qos import QoS
from .scripts import ack_command, find_command, parse_taken, take_command

__all__ = ["Channel", "SentinelChannel"]

logger = get_logger(__name__)

#: Its stubs know little of it.
kombu_redis: Any = kombu.transport.redis

#: Bytes of one batch, after which no further message is taken.
ROOM = 1 << 20

#: Acks in one command.
MOST_ACKS = 1000

#: Lists that one channel watches with a connection each.
MOST_BELLS = 64

#: Seconds without bells after one that could not be armed.
PAUSE = 1.0

#: Seconds of kombu's BRPOP before 5.7, where it is no attribute.
BRPOP_TIMEOUT = 1

#: kombu's strategies, and whether the queues take turns in them.
TURNS = {round_robin_cycle: True, priority_cycle: False, sorted_cycle: False}


#: For all channels of this process: whose a message is depends on them.
SCORES = Scores(time.time)


class Pull(NamedTuple):
    """A batch that was asked for."""

    score: str
    queues: list[str]
    #: Whether a bell was the reason.
    is_answer: bool


class Arrived(NamedTuple):
    """A message of a batch, on its way to kombu."""

    queue: str
    payload: Any
    #: None: it is in none of kombu's places, but only here.
    tag: str | None


class Batching:
    """What is added to kombu's channels."""

    QoS = QoS
    connection: Any
    qos: Any
    client: Any
    pool: Any
    connection_errors: Any
    closed: bool
    ack_emulation: bool
    active_queues: Any
    _put: Any
    priority_steps: Any
    global_keyprefix: str
    unacked_key: str
    unacked_index_key: str
    health_check_interval: Any
    _queue_cycle: Any
    _q_for_pri: Any

    #: Whether batches are in use; False: kombu's code, also while there are only
    #: consumers that do not acknowledge, such as those of replies to remote control.
    is_batching = False

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        self.shared: Shared = connection.shared
        self.ledger = Ledger()
        self._ramp = Ramp()
        self._work: Line | None = None
        self._bells: dict[str, Bell] = {}
        self._arrived: deque[Arrived] = deque()
        self._lost: list[Lost] = []
        #: The lists of each queue, by priority; empty when it is not up to date.
        self._lists: dict[str, list[str]] = {}
        self._may_have_more = True
        self._is_pulling = False
        self._has_rung = False
        self._contention = Contention()
        #: Until when no bell is armed, since others are faster.
        self._away_until = 0.0
        #: Until when no bell is armed, since one could not be: nothing tells of messages.
        self._deaf_until = 0.0
        #: Whether this channel finishes what an earlier connection could not.
        self._is_heir = False
        self._is_broken = False
        self._is_settled = False
        self._kept_client: Any = None
        super().__init__(connection, **kwargs)  # type: ignore[call-arg]
        self._unacked = self.global_keyprefix + self.unacked_key
        self._index = self.global_keyprefix + self.unacked_index_key
        self._broker = f"{connection.client.as_uri()} {self._unacked}"

    def _create_client(self, asynchronous: bool = False) -> Any:
        """Keep the client: to make one costs as much as to use it.

        Those that hold a connection of their own are kombu's affair.
        """
        if asynchronous:
            return super()._create_client(asynchronous)  # type: ignore[misc]
        # After a loss of the connection the channel has another pool.
        if self._kept_client is None or self._kept_client.connection_pool is not self.pool:
            self._kept_client = super()._create_client()  # type: ignore[misc]
        return self._kept_client

    def basic_consume(self, queue: str, no_ack: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Consume from *queue*."""
        if not no_ack:
            self._is_heir = True
            self.is_batching = not self.shared.off_reason
            if self.is_batching and not self.ack_emulation:
                self.fall_back("ack_emulation is off")
        return super().basic_consume(queue, no_ack, *args, **kwargs)  # type: ignore[misc]

    # Taking.

    def feed(self) -> None:
        """There is room: ask for messages, or for a bell when there are some."""
        if self._is_pulling:
            return
        if not self._lists:
            self._list_queues()
        if not self.is_batching:
            return
        now = time.monotonic()
        if 0 < self._deaf_until <= now:
            self._deaf_until = 0.0
            self._may_have_more = True
        if self._may_have_more:
            self._pull()
        elif now >= max(self._deaf_until, self._away_until):
            self._arm_bells()

    def longest_wait(self) -> float | None:
        """Return the seconds after which :meth:`feed` is to be called in any case, if it is."""
        until = max(self._deaf_until, self._away_until)
        now = time.monotonic()
        return until - now if until > now else None

    def _update_queue_cycle(self) -> None:
        """The channel consumes other queues than before."""
        super()._update_queue_cycle()  # type: ignore[misc]
        self._lists.clear()
        if not self.active_queues:
            self._close_bells(self._bells.keys())

    def _list_queues(self) -> None:
        self._lists = {
            queue: [
                self.global_keyprefix + self._q_for_pri(queue, priority)
                for priority in self.priority_steps
            ]
            for queue in self.active_queues
        }
        self._may_have_more = True
        keys = {key for lists in self._lists.values() for key in lists}
        if len(keys) > MOST_BELLS:
            self.fall_back(f"more than {MOST_BELLS} lists to watch")
            return
        self._close_bells(self._bells.keys() - keys)

    def _pull(self) -> None:
        room = self._room()
        size = self._ramp.next_size(room)
        queues: list[str] = self._queue_cycle.consume(len(self._lists))
        if size < 1 or not queues:
            return
        work = self._connected_work()
        pull = Pull(SCORES.next_score(), queues, self._has_rung)
        self._has_rung = False
        by_priority = zip(*(self._lists[queue] for queue in queues), strict=True)
        command = take_command(
            self._unacked,
            self._index,
            [key for keys in by_priority for key in keys],
            len(queues),
            score=pull.score,
            most=size,
            room=ROOM,
            turns=TURNS.get(type(self._queue_cycle), False),
        )
        self._is_pulling = True
        self._guarded(work, work.send, command, pull)

    def _room(self) -> int | None:
        """Return how many messages may come; None: no bound."""
        if not self.qos.can_consume():
            return 0
        # Whoever has a say of his own, as `worker_disable_prefetch` does, or a
        # strategy that is not kombu's, is asked after each message.
        if "can_consume" in vars(self.qos) or type(self._queue_cycle) not in TURNS:
            return 1 - len(self._arrived)
        room: int | None = self.qos.can_consume_max_estimate()
        return None if room is None else room - len(self._arrived)

    def _on_batch(self, pull: Pull, reply: Any) -> None:
        taken = parse_taken(reply, len(pull.queues))
        self.shared.on_batch(len(taken.messages))
        self._ramp.on_batch(taken.is_more)
        self._may_have_more = taken.is_more
        if pull.is_answer:
            self._stay_away(self._contention.on_answer(len(taken.messages)))
        for number, raw, tag in taken.messages:
            queue = pull.queues[number]
            self._queue_cycle.rotate(queue)
            if tag is None:
                self._say("a message without the fields that kombu writes")
            else:
                self.ledger.take(bytes_to_str(tag), pull.score)
            self._read(queue, raw, None if tag is None else bytes_to_str(tag))

    def _stay_away(self, seconds: float) -> None:
        if seconds > 0:
            self._away_until = time.monotonic() + seconds
            self._turn_after(seconds)

    def _turn_after(self, seconds: float) -> None:
        """Let the hub turn then: in each turn whoever has room is fed."""
        if self.connection.cycle.loop is not None:
            self.connection.cycle.loop.call_later(seconds, _turn)

    def _read(self, queue: str, raw: bytes, tag: str | None) -> None:
        try:
            payload = loads(bytes_to_str(raw))
        except Exception as exc:  # kombu's hooks may raise anything
            # It would end the worker, as it does with kombu, and stop each restore that
            # comes to it.
            logger.critical("dropped an unreadable message: %s: %r: %r", queue, exc, raw)
            if tag is not None:
                self.ledger.drop(tag)
        else:
            self._arrived.append(Arrived(queue, payload, tag))

    def _tags_with(self, score: str) -> list[str]:
        client: Any = redis.Redis(connection_pool=self.pool)  # one that knows no prefix
        return [
            bytes_to_str(tag) for tag in client.execute_command(*find_command(self._index, score))
        ]

    # Handing over to kombu.

    def deliver_next(self) -> bool:
        """Hand over one message that has arrived; whether there was one.

        Not while a consumer is about to be cancelled: it may be that message's.
        """
        if not self._arrived or self.connection.cycle.after_read:
            return False
        queue, payload, tag = self._arrived.popleft()
        if tag is None:
            self.connection._deliver(payload, queue)
        elif queue in self.connection._callbacks:
            self.connection._deliver(payload, queue)
            self.ledger.drop(tag)  # where its consumer does not acknowledge
        else:
            self._give_back(tag)  # its consumer was cancelled meanwhile
        return True

    def _give_back(self, tag: str) -> None:
        self.qos.restore_by_tag(tag)
        self.ledger.forget(tag)

    # In each turn.

    def before_poll(self) -> None:
        """Once in each turn of the loop: acknowledge what has come up."""
        if self._is_heir:
            self._take_over()
        while self.ledger.has_acks:
            self._send_acks()

    def on_ack(self) -> None:
        """An ack waits. Where the channel is closed, the next one sends it."""
        if self._is_settled:
            self.shared.carried(self._broker).acks.update(self.ledger.unfinished_acks())

    def on_line(self, line: Line) -> None:
        """*line* is readable. Raises ``queue.Empty`` where no message has come."""
        if isinstance(line, Bell):
            self._on_bell(line)
        else:
            self._on_work(line)
        if not self._arrived:
            raise Empty
        self.deliver_next()
        while self.connection.cycle.loop is not None and self.deliver_next():
            pass

    def _on_bell(self, bell: Bell) -> None:
        if not bell.is_waiting:
            self._close_line(bell)
            return
        reply = self._guarded(bell, bell.receive)
        if reply.error is not None:
            self._on_bell_error(reply)
        elif reply.value is not None:
            self._may_have_more = self._has_rung = True
        if self.is_batching and self.qos.can_consume():
            self.feed()

    def _on_bell_error(self, reply: Reply) -> None:
        if not is_refusal(reply.error):
            # Such as a server without free memory, to which moving means storing.
            logger.warning("Redis cannot tell when a message comes: %s", reply.error)
            self._deaf_until = time.monotonic() + PAUSE
            self._turn_after(PAUSE)
            return
        has_blmove, self.shared.has_blmove = reply.to, False
        if not has_blmove:
            self.fall_back(f"Redis refuses BRPOPLPUSH: {reply.error}")

    def _on_work(self, line: Line) -> None:
        if not line.is_waiting:
            # Redis closes connections that are idle for long, if it was told so.
            self._close_line(line)
            return
        while line.is_waiting and line.has_reply():
            self._on_reply(self._guarded(line, line.receive))
        # The next batch comes while this one is worked on.
        if self._arrived and self._may_have_more and self.is_batching and not self._is_pulling:
            self._pull()

    def _on_reply(self, reply: Reply) -> None:
        if isinstance(reply.to, Pull):
            self._is_pulling = False
        if reply.error is not None:
            self._on_work_error(reply)
        elif isinstance(reply.to, Pull):
            self._on_batch(reply.to, reply.value)
        else:
            self.ledger.confirm_acks()

    def _on_work_error(self, reply: Reply) -> None:
        if isinstance(reply.to, Pull):
            self._lost.append(Lost(reply.to.score))  # what it took before it failed
        if not is_refusal(reply.error):
            raise reply.error
        self.fall_back(f"Redis refuses the script: {reply.error}")

    # Lines.

    def _connected_work(self) -> Line:
        """Return the line for commands; before anything counts as sent on it."""
        if self._work is None:
            self._work = Line(self._line_pool(), redis.ResponseError)
        self._connect(self._work)
        return self._work

    def _send_acks(self) -> None:
        if self.is_batching:
            work = self._connected_work()
            command = ack_command(self._unacked, self._index, self.ledger.send_acks(MOST_ACKS))
            self._guarded(work, work.send, command, None)
        else:
            for tag in self.ledger.unfinished_acks():
                self.qos._remove_from_indices(tag).execute()

    def _arm_bells(self) -> None:
        for lists in self._lists.values():
            for key in lists:
                bell = self._bells.get(key)
                if bell is None:
                    bell = self._bells[key] = Bell(self._line_pool(), redis.ResponseError, key)
                if not bell.is_waiting:
                    self._connect(bell)
                    self._guarded(bell, bell.arm, self._bell_timeout, self.shared.has_blmove)

    @property
    def _bell_timeout(self) -> float:
        """Seconds after which a bell answers in any case; 0: never.

        All bells together then answer as often as kombu's one BRPOP.
        """
        lists = sum(map(len, self._lists.values()))
        seconds: float = getattr(self, "brpop_timeout", BRPOP_TIMEOUT)
        return seconds * lists

    def _guarded(self, line: Line, function: Any, *args: Any) -> Any:
        """Call *function* of *line*; after an error no reply to it can be told from another."""
        self._is_broken = True
        try:
            value = function(*args)
        except BaseException:
            self._close_line(line)
            raise
        self._is_broken = False
        return value

    def _line_pool(self) -> Any:
        """kombu's pool of connections, with room for one more than it was told to have."""
        pool = self.pool
        pool.max_connections += 1
        return pool

    def _connect(self, line: Line) -> None:
        if getattr(line.connection, "_re_auth_token", None) is not None and not line.is_waiting:
            self._close_line(line)  # connects anew, with the new credentials
        self.connection.cycle.watch(self, line)

    def _close_line(self, line: Line) -> None:
        if self.connection is not None:
            self.connection.cycle.unwatch(self, line)
        for expected in line.close():
            if isinstance(expected, Pull):
                self._is_pulling = False
                self._may_have_more = True
                self._lost.append(Lost(expected.score))
        if line is self._work:
            self.ledger.resend_acks()

    def _close_bells(self, keys: Iterable[str]) -> None:
        for key in tuple(keys):
            self._close_line(self._bells.pop(key))

    def _close_lines(self) -> None:
        for line in self._lines():
            self._close_line(line)
        self._work = None
        self._bells.clear()

    def _lines(self) -> list[Line]:
        lines: list[Line] = list(self._bells.values())
        return lines if self._work is None else [self._work, *lines]

    def check_lines(self) -> None:
        """Close connections whose replies are overdue: nobody is at their other ends."""
        for line in self._lines() if self.health_check_interval else ():
            time_to_reply = self._bell_timeout if isinstance(line, Bell) else 0
            if isinstance(line, Bell) and not time_to_reply:
                continue
            waited = line.waited()
            if waited > time_to_reply + self.health_check_interval and not line.has_reply():
                logger.warning("Redis did not reply for %.0f seconds: connecting anew", waited)
                self._close_line(line)

    def _poll_error(self, kind: Any, **options: Any) -> None:
        if isinstance(kind, Line):
            self.on_line(kind)
        else:
            super()._poll_error(kind, **options)  # type: ignore[misc]

    # Losses, and the end.

    def _take_over(self) -> None:
        """Finish what an earlier connection could not."""
        carried = self.shared.carried(self._broker)
        if carried.acks and self.is_batching:
            self.ledger.add(carried.acks)
            carried.acks.clear()
        if carried.lost:
            self._lost += carried.lost
            carried.lost.clear()
        if self._lost:
            self._restore_lost()

    def _restore_lost(self) -> None:
        """Give back what was on its way to this process when a connection broke."""
        while self._lost:
            score, tags = self._lost[0]
            for tag in self._tags_with(score):
                if tags is None or tag in tags:
                    self.qos.restore_by_tag(tag)
            del self._lost[0]

    def settle(self) -> None:
        """Finish what is under way, as far as the connection lets it; called at the end."""
        if self._is_settled:
            return
        try:
            if not self._is_broken:
                self._finish()
        except (*self.connection_errors, redis.ResponseError) as exc:
            logger.warning("Redis: left to the next connection, or to a restore: %r", exc)
        finally:
            self._is_settled = True
            self._close_lines()
            carried = self.shared.carried(self._broker)
            carried.acks.update(self.ledger.unfinished_acks())
            carried.lost += self._lost
            carried.lost += [
                Lost(score, frozenset([tag])) for tag, score in self.ledger.arriving.items()
            ]

    def _finish(self) -> None:
        if self._is_heir:
            self._take_over()
        while self.ledger.has_acks:
            self._send_acks()
        while self._work is not None and self._work.is_waiting:
            self._on_reply(self._guarded(self._work, self._work.wait))
        while self._arrived:
            queue, payload, tag = self._arrived.popleft()
            if tag is None:
                self._put(queue, payload)
            else:
                self._give_back(tag)
        for tag in list(self.ledger.arriving):
            self._give_back(tag)
        if self._lost:
            self._restore_lost()

    def close(self) -> None:
        """Close the channel."""
        if not self.closed:
            self.settle()
        super().close()  # type: ignore[misc]

    # Kombu's way.

    def fall_back(self, reason: str) -> None:
        """From now on do it in kombu's way, for good: later channels begin so."""
        self.is_batching = False
        self.shared.off_reason = reason
        self._say(reason)
        self._close_lines()

    def _say(self, reason: str) -> None:
        if self.shared.fall_back(reason):
            logger.warning("Redis is used in kombu's way, message by message: %s", reason)


def _turn() -> None:
    """What a timer calls that is there to turn the hub."""


class Channel(Batching, kombu_redis.Channel):  # type: ignore[misc]
    """kombu's channel, with batches."""


class SentinelChannel(Batching, kombu_redis.SentinelChannel):  # type: ignore[misc]
    """kombu's channel for Sentinel, with batches."""
