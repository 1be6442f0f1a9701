"""celery_asyncpool/child/redis_line.py: how long a reply may take, on a clock of the test's."""

import asyncio

import pytest

from celery_asyncpool.child.redis_line import RedisLine
from celery_asyncpool.core.resp import encode


class Clock:
    """As much of a loop as a line needs, with a time that the test sets."""

    def __init__(self, loop):
        self.create_future = loop.create_future
        self.now = 0.0
        self.timers = []

    def time(self):
        return self.now

    def call_soon(self, callback, context=None):
        callback()

    def call_later(self, seconds, callback, context=None):
        self.timers.append((self.now + seconds, callback))

    def advance(self, now):
        """Make what is due until *now*."""
        while due := [timer for timer in self.timers if timer[0] <= now]:
            self.timers.remove(timer := min(due, key=lambda timer: timer[0]))
            self.now = timer[0]
            timer[1]()
        self.now = now


class Wire:
    """A transport that keeps what is written."""

    def write(self, data):
        """Nobody reads it."""

    def abort(self):
        """Nothing to end."""


@pytest.fixture
def clock():
    loop = asyncio.new_event_loop()
    yield Clock(loop)
    loop.close()


def test_patience_counts_from_the_question(clock):
    """After a long pause a question has the whole time for its reply; then the line is lost."""
    line = RedisLine(clock, 10.0)
    line.connection_made(Wire())
    first = line.ask(encode(("GET", "a")))
    line.data_received(b"$-1\r\n")
    assert first.result() == [None]

    clock.advance(9.5)
    second = line.ask(encode(("GET", "b")))
    clock.advance(19.0)
    assert not second.done()

    clock.advance(19.6)
    assert second.result() is None
    assert line.is_lost
