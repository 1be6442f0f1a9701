"""celery_asyncpool/redis_transport/ledger.py: whose a message is, and what comes next."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from celery_asyncpool.redis_transport.ledger import (
    FIRST,
    LONGEST,
    MOST,
    SHORTEST,
    Contention,
    Ledger,
    Ramp,
    Scores,
    Shared,
)


def test_batches_grow_while_there_is_more():
    """From few messages to many, and few again when the queues were empty."""
    ramp = Ramp()
    sizes = []
    for _ in range(6):
        sizes.append(ramp.next_size(None))
        ramp.on_batch(is_more=True)

    assert sizes == [FIRST, FIRST * 2, FIRST * 4, MOST, MOST, MOST]
    ramp.on_batch(is_more=False)
    assert ramp.next_size(None) == FIRST


@pytest.mark.parametrize(("room", "size"), [(0, 0), (3, 3), (100, FIRST)])
def test_batches_fit(room, size):
    """No more is taken than there is room for."""
    assert Ramp().next_size(room) == size


def longest(low, high):
    """The longest time that may be drawn."""
    assert low == 0
    return high


def test_who_is_alone_watches_all_the_time():
    """He finds a message whenever it rings."""
    contention = Contention(longest)

    assert [contention.on_answer(messages) for messages in (1, 8, 64)] == [0, 0, 0]


def test_who_comes_too_late_stays_away():
    """Twice as long each time, up to a bound; each success makes it shorter, until it is over."""
    contention = Contention(longest)

    late = [contention.on_answer(0) for _ in range(8)]
    then = [contention.on_answer(1) for _ in range(4)]

    assert late[:3] == [SHORTEST, 2 * SHORTEST, 4 * SHORTEST]
    assert late == sorted(late)
    assert late[-1] == LONGEST
    assert then == [LONGEST / 4, LONGEST / 16, LONGEST / 64, 0]


@pytest.mark.parametrize("workers", [1, 2, 5, 10, 30])
def test_few_of_a_fleet_watch_at_a_time(workers):
    """However many there are; all get their share, and messages hardly wait."""
    rng = random.Random(1)
    fleet = [Contention(rng.uniform) for _ in range(workers)]
    back_at = [0.0] * workers
    rings, waits, wins, gap = [], [], Counter(), 0.005
    for number in range(4000):
        sent = number * gap
        now = max(sent, min(back_at))
        watching = [worker for worker in range(workers) if back_at[worker] <= now]
        winner = rng.choice(watching)
        wins[winner] += 1
        for worker in watching:
            back_at[worker] = now + fleet[worker].on_answer(worker == winner)
        rings.append(len(watching))
        waits.append(now - sent)

    assert sum(rings) / len(rings) <= 5
    assert min(wins[worker] for worker in range(workers)) > len(rings) / workers / 3
    assert max(waits) <= LONGEST
    assert sum(waits) / len(waits) < gap / 2


def test_scores_are_the_time():
    """kombu looks at them to see which messages are old."""
    assert float(Scores(lambda: 1_800_000_000.25).next_score()) == 1_800_000_000.25


def test_scores_are_never_the_same():
    """Even where the clock stands still, or goes back a little."""
    times = iter([5.0, 5.0, 4.5, 6.0])
    scores = Scores(lambda: next(times))

    found = [float(scores.next_score()) for _ in range(4)]

    assert found == sorted(set(found))
    assert found[-1] == 6.0


def test_scores_follow_a_clock_that_is_set_back():
    """A message taken from then on would otherwise be restored an hour late."""
    times = iter([5000.0, 1400.0, 1400.0])
    scores = Scores(lambda: next(times))

    found = [float(scores.next_score()) for _ in range(3)]

    assert found[1] == 1400.0
    assert 1400.0 < found[2] < 1400.1


def test_a_message_from_its_batch_to_its_ack():
    """It arrives, is held, its ack waits, is sent, and is confirmed."""
    ledger = Ledger()
    ledger.take("a", "1.0")
    assert repr(ledger) == "<Ledger 1 arriving, 0 held, 0 acks wait, 0 sent>"
    assert ledger.hold("a")
    assert repr(ledger) == "<Ledger 0 arriving, 1 held, 0 acks wait, 0 sent>"
    assert ledger.ack("a")
    assert repr(ledger) == "<Ledger 0 arriving, 0 held, 1 acks wait, 0 sent>"
    assert ledger.send_acks(10) == [("a", "1.0")]
    assert repr(ledger) == "<Ledger 0 arriving, 0 held, 0 acks wait, 1 sent>"
    ledger.confirm_acks()
    assert repr(ledger) == "<Ledger 0 arriving, 0 held, 0 acks wait, 0 sent>"


def test_a_message_that_is_not_of_a_batch():
    """kombu keeps and acknowledges it."""
    ledger = Ledger()

    assert not ledger.hold("a")
    assert not ledger.ack("a")
    assert not ledger.has_acks


def test_an_ack_is_sent_once():
    """A second one says nothing."""
    ledger = Ledger()
    ledger.take("a", "1.0")
    ledger.hold("a")

    assert [ledger.ack("a"), ledger.ack("a")] == [True, False]
    assert ledger.send_acks(10) == [("a", "1.0")]
    assert ledger.send_acks(10) == []


def test_acks_of_a_lost_connection():
    """What was sent and not confirmed is sent again, before what has waited."""
    ledger = Ledger()
    for tag in "abcd":
        ledger.take(tag, "1.0")
        ledger.hold(tag)
        ledger.ack(tag)
    ledger.send_acks(1)
    ledger.send_acks(2)
    ledger.confirm_acks()

    ledger.resend_acks()

    assert [tag for tag, _ in ledger.send_acks(10)] == ["b", "c", "d"]


def test_acks_for_the_next_connection():
    """They leave one ledger, and enter another."""
    ledger, later = Ledger(), Ledger()
    for tag in "ab":
        ledger.take(tag, "1.0")
        ledger.hold(tag)
        ledger.ack(tag)
    ledger.send_acks(1)

    later.add(ledger.unfinished_acks())

    assert not ledger.has_acks
    assert later.send_acks(10) == [("a", "1.0"), ("b", "1.0")]


def test_a_message_that_went_back():
    """Nothing is left of it."""
    ledger = Ledger()
    ledger.take("a", "1.0")
    ledger.forget("a")
    ledger.take("b", "1.0")
    ledger.hold("b")
    ledger.forget_held()

    assert not ledger.ack("a")
    assert not ledger.ack("b")


def test_a_message_that_nobody_keeps():
    """It is acknowledged at once, unless somebody has kept it."""
    ledger = Ledger()
    for tag in "ab":
        ledger.take(tag, "1.0")
    ledger.hold("a")

    ledger.drop("a")
    ledger.drop("b")

    assert ledger.send_acks(10) == [("b", "1.0")]


def test_statistics():
    """How many batches, how large, and why not."""
    shared = Shared()
    for size in (0, 1, 4):
        shared.on_batch(size)
    assert [shared.fall_back("reason") for _ in range(2)] == [True, False]

    assert shared.info() == {
        "batching": True,
        "batches": 2,
        "empty-batches": 1,
        "messages": 5,
        "messages-per-batch": {"mean": 2.5, "max": 4},
        "fallbacks": {"reason": 2},
    }


def test_statistics_when_off():
    """They say why."""
    info = Shared("no").info()

    assert (info["batching"], info["reason"]) == (False, "no")
    assert info["messages-per-batch"] == {"mean": 0.0, "max": 0}
