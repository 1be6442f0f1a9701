"""What a channel has taken and acknowledged, and how much it takes next; no I/O here.

A message is *arriving* from when its batch is read until kombu has it, then
*held* until it is acknowledged; its ack *waits* for the next write, and is
*sent* until Redis has confirmed it. It is one of these at a time.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = [
    *("FIRST", "LONGEST", "MOST", "SHORTEST"),
    *("Carried", "Contention", "Ledger", "Lost", "Ramp", "Scores", "Shared"),
]

#: Messages of the first batch after the queues were empty, and of any.
FIRST, MOST = 8, 64

#: Seconds for which one who came too late stays away, at most: after the first time,
#: and after many.
SHORTEST, LONGEST = 0.002, 0.1

#: Not Python's own generator, which the app may have seeded, in all workers alike.
SYSTEM_RANDOM = random.SystemRandom()

#: Seconds in which a clock may stand still, or go back a little.
RESOLUTION = 1.0


class Ramp:
    """How large the next batch should be.

    While there are more messages than one takes, batches grow. They begin small:
    of a few messages, those who come first do not leave the others without any.
    """

    def __init__(self) -> None:
        self._size = FIRST

    def next_size(self, room: int | None) -> int:
        """Return the size of the next batch where there is *room*; None: no bound."""
        return self._size if room is None else min(self._size, room)

    def on_batch(self, is_more: bool) -> None:
        """A batch has come; did it leave more behind?"""
        self._size = min(self._size * 2, MOST) if is_more else FIRST


class Contention:
    """How long a channel does not watch an empty list, since others do who are faster.

    Redis tells all who watch a list of each message, and one of them gets it. If all
    idle workers of a large fleet watched all the time, each message would cost each
    of them a few commands. So whoever comes too late stays away for a random
    time, twice as long as before; who gets a message, a quarter as long. A fleet comes to rest
    where one look in three finds a message: about three watch at a time, however many there
    are. One that is alone never stays away.

    *uniform* draws a number between two others.
    """

    def __init__(self, uniform: Callable[[float, float], float] = SYSTEM_RANDOM.uniform) -> None:
        self._uniform = uniform
        self._longest = 0.0

    def on_answer(self, messages: int) -> float:
        """A look after a ring has found *messages*; return the seconds to stay away."""
        if not messages:
            self._longest = min(max(2 * self._longest, SHORTEST), LONGEST)
        elif self._longest <= SHORTEST:
            self._longest = 0.0
        else:
            self._longest /= 4
        return self._uniform(0, self._longest)


class Scores:
    """Times at which batches are taken, no two of them the same.

    kombu's index of unacknowledged messages is sorted by when they were taken.
    Here that time also says whose a message is.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last = 0.0

    def next_score(self) -> str:
        """Return the time now, as Redis is told it."""
        now = self._clock()
        # A clock that was set back is followed: messages would be restored too late.
        if self._last - RESOLUTION <= now <= self._last:
            now = math.nextafter(self._last, math.inf)
        self._last = now
        return repr(now)


class Ledger:
    """The delivery tags of one channel, each with the score under which it was taken."""

    def __init__(self) -> None:
        self.arriving: dict[str, str] = {}
        self._held: dict[str, str] = {}
        #: Acks may come from other threads: a deque needs no lock.
        self._waiting: deque[tuple[str, str]] = deque()
        self._sent: deque[list[tuple[str, str]]] = deque()

    def __repr__(self) -> str:
        sent = sum(map(len, self._sent))
        return (
            f"<Ledger {len(self.arriving)} arriving, {len(self._held)} held, "
            f"{len(self._waiting)} acks wait, {sent} sent>"
        )

    def take(self, tag: str, score: str) -> None:
        """A message has been read, and Redis has it as unacknowledged."""
        self.arriving[tag] = score

    def hold(self, tag: str) -> bool:
        """kombu has the message; False where it is not one of a batch."""
        score = self.arriving.pop(tag, None)
        if score is not None:
            self._held[tag] = score
        return score is not None

    def ack(self, tag: str) -> bool:
        """Acknowledge it with the next write; False where it is not one of a batch."""
        score = self._held.pop(tag, None)
        if score is not None:
            self._waiting.append((tag, score))
        return score is not None

    def forget(self, tag: str) -> None:
        """The message has gone back to its queue."""
        self._held.pop(tag, None)
        self.arriving.pop(tag, None)

    def forget_held(self) -> None:
        """So have all that kombu had."""
        self._held.clear()

    def add(self, acks: dict[str, str]) -> None:
        """Send these too: an earlier connection could not."""
        self._waiting.extend(acks.items())

    def drop(self, tag: str) -> None:
        """Acknowledge one that kombu has not kept."""
        score = self.arriving.pop(tag, None)
        if score is not None:
            self._waiting.append((tag, score))

    @property
    def has_acks(self) -> bool:
        """Whether acks wait for a write."""
        return bool(self._waiting)

    def send_acks(self, most: int) -> list[tuple[str, str]]:
        """Return acks that wait, which are sent from now on."""
        acks = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        if acks:
            self._sent.append(acks)
        return acks

    def confirm_acks(self) -> None:
        """Redis has answered to the oldest write."""
        self._sent.popleft()

    def resend_acks(self) -> None:
        """The connection is lost: send once more what Redis has not confirmed."""
        self._waiting.extendleft(ack for write in reversed(self._sent) for ack in reversed(write))
        self._sent.clear()

    def unfinished_acks(self) -> dict[str, str]:
        """Return, and forget, those that Redis has not confirmed."""
        self.resend_acks()
        acks = {}
        while self._waiting:
            tag, score = self._waiting.popleft()
            acks[tag] = score
        return acks


class Lost(NamedTuple):
    """Messages that this process has taken and cannot give back just now."""

    score: str
    #: None: all that have the score, since the reply that names them was lost.
    tags: frozenset[str] | None = None


@dataclass(slots=True)
class Carried:
    """What one connection could not finish, and the next one does."""

    acks: dict[str, str] = field(default_factory=dict)
    lost: list[Lost] = field(default_factory=list)


class Shared:
    """What all channels of a worker have in common, over all its connections.

    Arguments:
        reason: why batches are off from the start; empty where they are not.
    """

    def __init__(self, reason: str = "") -> None:
        self.off_reason = reason
        #: Why the broker that the worker has now cannot have them.
        self.unused_reason = ""
        self.batches = 0
        self.messages = 0
        self.largest = 0
        self.empty = 0
        #: Reasons to do it in kombu's way, and how often.
        self.fallbacks: dict[str, int] = {}
        #: Whether the server knows BLMOVE (Redis 6.2).
        self.has_blmove = True
        self._carried: dict[str, Carried] = {}

    def on_batch(self, size: int) -> None:
        """A batch has come, which may be empty."""
        if not size:
            self.empty += 1
        else:
            self.batches += 1
            self.messages += size
            self.largest = max(self.largest, size)

    def fall_back(self, reason: str) -> bool:
        """Note that something is done in kombu's way; whether it is the first time."""
        self.fallbacks[reason] = self.fallbacks.get(reason, 0) + 1
        return self.fallbacks[reason] == 1

    def carried(self, broker: str) -> Carried:
        """What earlier connections to *broker* have left."""
        return self._carried.setdefault(broker, Carried())

    def info(self) -> dict[str, object]:
        """For ``celery inspect stats``."""
        reason = self.off_reason or self.unused_reason
        info: dict[str, object] = {"batching": not reason}
        if reason:
            info["reason"] = reason
        mean = round(self.messages / self.batches, 1) if self.batches else 0.0
        info["batches"] = self.batches
        info["empty-batches"] = self.empty
        info["messages"] = self.messages
        info["messages-per-batch"] = {"mean": mean, "max": self.largest}
        info["fallbacks"] = dict(self.fallbacks)
        return info
