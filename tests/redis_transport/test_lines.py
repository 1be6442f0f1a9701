"""celery_asyncpool/redis_transport/lines.py: connections that are read when there is news."""

from __future__ import annotations

import pytest
import redis as redis_client
from kombu.transport.redis import MultiChannelPoller

from celery_asyncpool.redis_transport.lines import Bell, Line, is_refusal

PATIENCE = 60


@pytest.fixture
def connect(redis):
    """Connects lines as kombu's poller does; they are closed at the end."""
    lines = []

    def connect(line_class=Line, *args):
        line = line_class(redis.connection_pool, redis_client.ResponseError, *args)
        MultiChannelPoller()._client_registered(None, line, line)
        lines.append(line)
        return line

    yield connect
    for line in lines:
        line.close()


def test_replies_come_in_order(connect):
    """Commands do not wait for the replies to earlier ones; each reply says what it is to."""
    line = connect()
    for number in range(3):
        line.send(("ECHO", str(number)), number)

    replies = [line.wait() for _ in range(3)]

    assert [(reply.to, reply.value) for reply in replies] == [(0, b"0"), (1, b"1"), (2, b"2")]
    assert not line.is_waiting


def test_error_is_a_reply(connect):
    """Those behind it come too."""
    line = connect()
    line.send(("NONSENSE",), "first")
    line.send(("ECHO", "x"), "second")

    first, second = line.wait(), line.wait()

    assert (first.to, first.value, is_refusal(first.error)) == ("first", None, True)
    assert second == ("second", b"x", None)


def test_a_reply_that_does_not_come(connect, redis, monkeypatch):
    """Who waits for it is told."""
    monkeypatch.setattr("celery_asyncpool.redis_transport.lines.PATIENCE", 0.05)
    line = connect(Bell, "nothing")
    line.arm(0, has_blmove=True)

    with pytest.raises(TimeoutError):
        line.wait()

    assert line.is_waiting
    assert line.waited() > 0


def test_close_tells_what_is_unanswered(connect):
    """In the order in which it was sent; the line can be connected again."""
    line = connect()
    line.send(("ECHO", "a"), "a")
    line.send(("ECHO", "b"), "b")

    assert line.close() == ["a", "b"]

    assert (line.sock, line.is_waiting, line.waited()) == (None, False, 0.0)
    assert line.close() == []


@pytest.mark.parametrize("has_blmove", [True, False])
def test_bell_rings_and_leaves_the_list(connect, redis, has_blmove):
    """The message is still there, and so is the time that the list has to live."""
    bell = connect(Bell, "list")
    bell.arm(0, has_blmove)
    with redis.pipeline() as pipeline:
        pipeline.lpush("list", "message").pexpire("list", 100_000).execute()

    assert bell.has_reply(PATIENCE)
    assert bell.receive() == (has_blmove, b"message", None)

    assert redis.lrange("list", 0, -1) == [b"message"]
    assert redis.pttl("list") > 0


def test_bell_keeps_the_order(connect, redis):
    """However many messages there are."""
    redis.lpush("list", *"abc")
    bell = connect(Bell, "list")

    bell.arm(0, has_blmove=True)

    assert bell.has_reply(PATIENCE)
    assert bell.receive().value == b"a"
    assert redis.lrange("list", 0, -1) == [b"c", b"b", b"a"]


def test_bell_gives_up_in_the_end(connect):
    """After its time it says that there was nothing."""
    bell = connect(Bell, "list")

    bell.arm(0.05, has_blmove=True)

    assert bell.has_reply(PATIENCE)
    assert bell.receive().value is None


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("unknown command `BLMOVE`, with args beginning with: `q`", True),  # 5
        ("unknown command 'BLMOVE', with args beginning with: 'q'", True),  # 7
        ("this user has no permissions to run the 'eval' command or its subcommand", True),  # 6
        ("User u has no permissions to run the 'eval' command", True),  # 7.2
        ("The user executing the script can't run this command or subcommand", True),
        ("Unknown Redis command called from script", True),
        ("CROSSSLOT Keys in request don't hash to the same slot", True),
        ("command not allowed when used memory > 'maxmemory'.", False),
        ("Operation against a key holding the wrong kind of value", False),
        ("You can't write against a read only replica.", False),
        ("Errors trying to SAVE: commands that may modify the data set are disabled", False),
    ],
)
def test_refusals(text, is_one):
    """What the server will never do is told from what it cannot do now."""
    assert is_refusal(redis_client.ResponseError(text)) is is_one
