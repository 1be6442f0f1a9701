"""Whether every task has ended exactly once, as the design says; told from the record.

A message may be delivered more than once, and each further delivery needs its
reason: one that was given back, or whose connection was lost, before its
acknowledgement can have reached the broker. So a body may *end* more than once,
which no worker with late acknowledgement can avoid: its process is killed, or
the connection is cut, in the moment between its end and the acknowledgement.
These are counted apart, as run again. *Doubled* is what has no such reason:

- a delivery whose body started twice, or ended twice,
- a delivery of a message that was acknowledged, or was still with the worker,
- a delivery that was given back although its process lived,
- a body that published two retries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .history import Delivery, History, Message
from .kinds import SUCCESS, Kind

LOST, DOUBLED, LEAKED, WRONG = "lost", "doubled", "leaked", "wrong"

#: Seconds that an acknowledgement may take from the worker to the broker: one
#: that was sent so shortly before the connection was cut may not have arrived.
ACK_TRAVEL = 3.0

#: Seconds in which the end of a body must have led to its acknowledgement. The
#: process may be stopped, or blocked, and the worker may be looking for its broker.
ACK_PATIENCE = 30.0

#: How much earlier a connection may have been made than the worker has noted.
CONNECT_MARGIN = 1.0

#: Seconds after a cut in which the worker may lose a connection that nobody has
#: cut: what is left of an old one in its event loop makes Celery connect twice.
AFTER_CUT = 30.0

RETURNED = "returned"

#: Ends of bodies that were not theirs: the pool ended them, and they may run again.
NOT_AN_END = ("CancelledError", "GeneratorExit", "StopThread")

# Why a message was delivered again.
PROCESS_LOST = "its process was lost"
CONNECTION_LOST = "the connection was cut"
PUBLISHED_AGAIN = "the connection was cut while it was published"


class Sent(NamedTuple):
    """A task that was sent."""

    kind: Kind
    token: int
    arguments: dict[str, Any]


class State(NamedTuple):
    """What the result backend says of a task."""

    status: str
    #: The exception's name where it failed.
    error: str | None = None
    result: Any = None

    @property
    def outcome(self) -> str:
        return self.error or self.status


class Finding(NamedTuple):
    """One thing that is wrong."""

    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.what}: {self.text}"


@dataclass
class Verdict:
    """What was found, and counts of what was not wrong."""

    findings: list[Finding] = field(default_factory=list)
    #: By kind and outcome.
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: Deliveries after the first one, by reason.
    delivered_again: Counter[str] = field(default_factory=Counter)
    #: Tasks that ended well and whose state is not what they ended with.
    overwritten: int = 0
    #: Bodies that ended though an earlier run had, by the reason of the delivery.
    run_again: Counter[str] = field(default_factory=Counter)

    def add(self, what: str, text: str) -> None:
        self.findings.append(Finding(what, text))

    def count(self, what: str) -> int:
        return sum(1 for finding in self.findings if finding.what == what)


class Interruption(NamedTuple):
    """Why, and from when on, the broker may deliver a message again."""

    at: float
    reason: str
    #: False where the acknowledgement may have arrived after all.
    must_return: bool


class _Evidence:
    """What speaks for a further delivery."""

    def __init__(self, history: History, cuts: Collection[float], deaths: Collection[int]) -> None:
        self._cuts = sorted(cuts)
        self._deaths = set(deaths)
        self._opened = dict(history.opened)
        self._closed = history.closed
        for delivery in history.deliveries.values():
            opened = self._opened.get(delivery.channel, delivery.received)
            self._opened[delivery.channel] = min(opened, delivery.received)

    def has_died(self, pid: int) -> bool:
        return pid in self._deaths

    def lost_at(self, channel: int) -> float | None:
        """When the connection of *channel* was cut, or the worker gave it up."""
        opened = self._opened[channel] - CONNECT_MARGIN
        cut = next((cut for cut in self._cuts if cut >= opened), None)
        closed = self._closed.get(channel)
        return closed if cut is None or (closed is not None and closed < cut) else cut

    def uncut(self) -> list[int]:
        """Channels that the worker has lost though nothing had been cut shortly before."""
        return [
            channel
            for channel, closed in self._closed.items()
            if not any(closed - AFTER_CUT <= cut <= closed for cut in self._cuts)
        ]

    def copies(self, message: Message) -> int:
        """How often the broker may have got *message*: once more for each cut meanwhile."""
        if not message.retries:
            return 1  # from the client, whose connection is never cut
        end = message.published if message.published is not None else float("inf")
        return 1 + sum(1 for cut in self._cuts if message.publishing - 1.0 <= cut <= end)


def check(
    sent: Mapping[str, Sent],
    states: Mapping[str, State],
    history: History,
    cuts: Collection[float],
    deaths: Collection[int],
) -> Verdict:
    """Judge all tasks that were *sent*.

    Arguments:
        sent: the tasks, by id.
        states: what the result backend says of them.
        history: the record's.
        cuts: when the broker's connections were cut.
        deaths: pids of the worker processes that were lost.
    """
    verdict = Verdict()
    evidence = _Evidence(history, cuts, deaths)
    messages = history.by_task()
    for task_id, task in sent.items():
        _check_task(verdict, evidence, task_id, task, states.get(task_id), messages.get(task_id))
    for channel in evidence.uncut():
        verdict.add(WRONG, f"the worker has lost channel {channel}, which nobody has cut")
    for task_id in messages.keys() - sent.keys():
        verdict.add(WRONG, f"task {task_id} was never sent:{_tell(messages[task_id])}")
    return verdict


def _check_task(
    verdict: Verdict,
    evidence: _Evidence,
    task_id: str,
    task: Sent,
    state: State | None,
    messages: Sequence[Message] | None,
) -> None:
    who = f"task {task.token}, {task.kind.name} ({task.kind.task} {task_id})"
    if state is not None and state.status == "RETRY" and (end := _overwritten(messages or ())):
        state = State("FAILURE", end)
        verdict.overwritten += 1
    problems = list(_problems_of_outcome(task, state))
    succeeded = _succeeded(messages or ())
    for message in messages or ():
        problems += _check_deliveries(verdict, evidence, message)
        for delivery in message.deliveries:
            problems += _problems_of_run(task.kind, delivery, succeeded)
    if not messages:
        problems.append((LOST, "the record does not know it"))
    for what, text in problems:
        verdict.add(what, f"{who}: {text}{_tell(messages or ())}")
    if state is not None:
        verdict.outcomes[task.kind.name, state.outcome] += 1


def _succeeded(messages: Sequence[Message]) -> float:
    """Return when the task's body returned for the first time."""
    ends = [
        end for message in messages for delivery in message.deliveries for end in delivery.ends
    ]
    return min((at for at, how in ends if how == RETURNED), default=float("inf"))


def _overwritten(messages: Sequence[Message]) -> str | None:
    """Return the exception with which the task ended before its state became RETRY.

    Celery publishes a retry first, and then stores that state. When the process
    is stopped in between, the retry may have failed for good meanwhile.
    """
    deliveries = [delivery for message in messages for delivery in message.deliveries]
    runs = [(*delivery.ends[-1], delivery) for delivery in deliveries if delivery.ends]
    final = [
        (at, how)
        for at, how, delivery in runs
        if how not in ("Retry", RETURNED, *NOT_AN_END) and delivery.acked is not None
    ]
    if not final:
        return None
    at, how = max(final)
    late = any(
        end == "Retry" and (delivery.acked is None or delivery.acked > at)
        for _, end, delivery in runs
    )
    return how if late else None


def _problems_of_outcome(task: Sent, state: State | None) -> list[tuple[str, str]]:
    if state is None or state.status in ("PENDING", "RETRY", "STARTED", "RECEIVED"):
        return [(LOST, f"it has no outcome: {state and state.status}")]
    if state.outcome not in task.kind.ends:
        allowed = " or ".join(sorted(task.kind.ends))
        return [(WRONG, f"it ended with {state.outcome} ({state.result!r}), not with {allowed}")]
    expected = task.kind.result(task.token, task.arguments)
    if state.outcome == SUCCESS and state.result != expected:
        return [(WRONG, f"its result is {state.result!r}, not {expected!r}")]
    return []


def _problems_of_run(kind: Kind, delivery: Delivery, succeeded: float) -> list[tuple[str, str]]:
    """What is wrong with one delivery, seen alone.

    *succeeded*: when the task returned in any run. Where the process of another
    one is lost after that, Celery finds the result and acknowledges.
    """
    problems = []
    if len(delivery.starts) > 1:
        problems.append((DOUBLED, f"delivery {delivery.number} started {len(delivery.starts)}x"))
    if len(delivery.ends) > 1:
        problems.append((DOUBLED, f"delivery {delivery.number} ended {len(delivery.ends)} times"))
    if len(delivery.published) > 1:
        problems.append((DOUBLED, f"delivery {delivery.number} published more than one retry"))
    how = delivery.ends[-1][1] if delivery.ends else None
    has_ended = how is not None and how not in NOT_AN_END
    if delivery.acked is not None and not has_ended and not kind.may_time_out:
        if delivery.acked < succeeded:
            text = f"delivery {delivery.number} was acknowledged and its body had not ended"
            problems.append((LOST, text))
    if delivery.acked is not None and how == "Retry" and not delivery.published:
        problems.append((LOST, f"delivery {delivery.number} has not published its retry"))
    if delivery.rejected is not None and not delivery.requeued:
        problems.append((LOST, f"delivery {delivery.number} was rejected for good"))
    return problems


def _check_deliveries(
    verdict: Verdict, evidence: _Evidence, message: Message
) -> list[tuple[str, str]]:
    """Find the reason of each delivery after the first."""
    problems = []
    spare_copies = evidence.copies(message) - 1
    open_: list[Interruption] = []
    has_ended = False
    for index, delivery in enumerate(message.deliveries):
        reason = None
        if index:
            returned = next((i for i in open_ if i.at <= delivery.received), None)
            if returned is not None:
                open_.remove(returned)
                reason = returned.reason
            elif spare_copies:
                spare_copies -= 1
                reason = PUBLISHED_AGAIN
            else:
                text = "came again though nothing had happened to the one before"
                problems.append((DOUBLED, f"delivery {delivery.number} {text}"))
        if reason is not None:
            verdict.delivered_again[reason] += 1
        if any(how not in NOT_AN_END for _, how in delivery.ends):
            if has_ended and reason is not None:
                verdict.run_again[reason] += 1
            has_ended = True
        interruption, found = _interruption(evidence, delivery)
        problems += found
        if interruption is not None:
            open_.append(interruption)
    if message.published is not None and not message.deliveries:
        problems.append((LOST, f"message {message.name[:8]} was never delivered"))
    if any(interruption.must_return for interruption in open_):
        problems.append((LOST, f"message {message.name[:8]} was not delivered again"))
    return problems


def _interruption(
    evidence: _Evidence, delivery: Delivery
) -> tuple[Interruption | None, list[tuple[str, str]]]:
    """Why the broker may deliver the message of *delivery* again; what is wrong with that."""
    who = f"delivery {delivery.number}"
    lost_at = evidence.lost_at(delivery.channel)
    ended = delivery.ends[-1][0] if delivery.ends else None
    if delivery.acked is not None:
        if lost_at is None or delivery.acked < lost_at - ACK_TRAVEL:
            return None, []
        return Interruption(lost_at, CONNECTION_LOST, must_return=False), []
    if delivery.rejected is not None:
        given_back, reason = delivery.rejected, PROCESS_LOST
        dead = all(evidence.has_died(pid) for _, pid in delivery.starts)
        problems = [] if dead else [(DOUBLED, f"{who} was given back though its process lived")]
    elif lost_at is not None:
        given_back, reason, problems = lost_at, CONNECTION_LOST, []
    else:
        return None, [(LOST, f"{who} was never acknowledged")]
    if ended is not None and given_back - ended > ACK_PATIENCE:
        late = given_back - ended
        problems.append((WRONG, f"{who} had ended for {late:.0f} s and was not acknowledged"))
    return Interruption(given_back, reason, must_return=True), problems


def _tell(messages: Sequence[Message]) -> str:
    return "".join(f"\n    {message}" for message in messages)
