"""What the record tells of each message: its deliveries, and what became of each.

A task is sent as a message, and each of its retries is another one. A message
is delivered once if nothing goes wrong, and again when the broker connection,
or the process that had it, was lost before it was acknowledged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Line = dict[str, Any]


@dataclass
class Delivery:
    """One message, delivered once to the worker's main process."""

    number: int
    message: Message
    channel: int
    received: float
    #: When bodies started, and in which process: no more than once.
    starts: list[tuple[float, int]] = field(default_factory=list)
    #: When bodies ended, and how.
    ends: list[tuple[float, str]] = field(default_factory=list)
    acked: float | None = None
    rejected: float | None = None
    requeued: bool = False
    #: Messages that its body published: its retry.
    published: list[Message] = field(default_factory=list)

    def __str__(self) -> str:
        words = [f"delivery {self.number} on channel {self.channel} at {self.received:.3f}"]
        words += [f"started at {at:.3f} in {pid}" for at, pid in self.starts]
        words += [f"{how} at {at:.3f}" for at, how in self.ends]
        if self.acked is not None:
            words.append(f"acknowledged at {self.acked:.3f}")
        if self.rejected is not None:
            words.append(f"rejected at {self.rejected:.3f}, requeue={self.requeued}")
        return ", ".join(words)


@dataclass
class Message:
    """One message of a task."""

    name: str
    task: str
    retries: int
    publishing: float
    #: When the broker had confirmed it; None if its publisher died before.
    published: float | None = None
    #: The delivery whose body published it; None for the client's.
    by: int | None = None
    deliveries: list[Delivery] = field(default_factory=list)

    def __str__(self) -> str:
        confirmed = "" if self.published is None else f", confirmed at {self.published:.3f}"
        who = "the client" if self.by is None else f"delivery {self.by}"
        head = f"message {self.name[:8]} (retries {self.retries}), published by {who}"
        lines = [f"{head} at {self.publishing:.3f}{confirmed}"]
        return "\n      ".join([*lines, *map(str, self.deliveries)])


@dataclass
class History:
    """All messages, and the worker's connections."""

    messages: dict[str, Message] = field(default_factory=dict)
    deliveries: dict[int, Delivery] = field(default_factory=dict)
    #: When each of the worker's channels was opened, and when it knew that it was lost.
    opened: dict[int, float] = field(default_factory=dict)
    closed: dict[int, float] = field(default_factory=dict)

    def by_task(self) -> dict[str, list[Message]]:
        """The messages of each task, in the order of their publication."""
        tasks = defaultdict(list)
        for message in sorted(self.messages.values(), key=lambda m: m.publishing):
            tasks[message.task].append(message)
        return dict(tasks)


def read_history(lines: Iterable[Line]) -> History:
    """Put the *lines* of the record, the worker's and the client's, together.

    Processes write at the same time: what the client says of a message may
    come after what the worker says of it, but each says its own in order.
    """
    history = History()
    first = ("publishing", "connected")
    ordered = sorted(lines, key=lambda line: (line["what"] not in first, line["at"]))
    for line in ordered:
        _read_line(history, line)
    for message in history.messages.values():
        if message.by is not None and message.by in history.deliveries:
            history.deliveries[message.by].published.append(message)
    return history


def _read_line(history: History, line: Line) -> None:
    what, at = line["what"], line["at"]
    if what == "publishing":
        history.messages[line["message"]] = Message(
            line["message"], line["id"], line["retries"], at, by=line.get("by")
        )
    elif what == "published":
        history.messages[line["message"]].published = at
    elif what == "connected":
        history.opened[line["channel"]] = at
    elif what == "disconnected":
        history.closed[line["channel"]] = at
    elif what == "received":
        message = history.messages[line["message"]]
        delivery = Delivery(line["delivery"], message, line["channel"], at)
        message.deliveries.append(delivery)
        history.deliveries[delivery.number] = delivery
    else:
        _read_end(history.deliveries[line["delivery"]], line)


def _read_end(delivery: Delivery, line: Line) -> None:
    what, at = line["what"], line["at"]
    if what == "started":
        delivery.starts.append((at, line["pid"]))
    elif what == "ended":
        delivery.ends.append((at, line["how"]))
    elif what == "acked":
        delivery.acked = at
    elif what == "rejected":
        delivery.rejected, delivery.requeued = at, line["requeue"]
    else:
        raise AssertionError(f"what is {line!r}?")
