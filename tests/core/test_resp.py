"""celery_asyncpool/core/resp.py: commands and replies as Redis has them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_asyncpool.core.resp import Refusal, Replies, UnknownReplyError, encode

REPLIES = st.lists(
    st.one_of(
        st.binary(max_size=50),
        st.integers(-(2**63), 2**63 - 1),
        st.none(),
        st.from_regex(r"\AERR [a-z ]{0,20}\Z").map(Refusal),
    )
)


def written(reply, null):
    """*reply* as a server writes it."""
    if reply is None:
        return null
    if isinstance(reply, Refusal):
        return b"-%s\r\n" % reply.encode()
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    return b"$%d\r\n%s\r\n" % (len(reply), reply)


@given(REPLIES, st.lists(st.integers(0, 500)), st.sampled_from([b"$-1\r\n", b"_\r\n"]))
def test_pieces_of_any_size(replies, cuts, null):
    """However the replies are cut on their way, the same come out, in their order."""
    data = b"".join(written(reply, null) for reply in replies)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    reader, got = Replies(), []
    for start, end in itertools.pairwise(edges):
        got += reader.feed(data[start:end])

    assert got == replies
    assert [type(reply) for reply in got] == [type(reply) for reply in replies]


def test_status():
    """What says that all is well is text."""
    assert Replies().feed(b"+OK\r\n") == [b"OK"]


@pytest.mark.parametrize("data", [b"*1\r\n:1\r\n", b">2\r\n", b"%1\r\n", b"\r\n"])
def test_unknown(data):
    """What none of our commands is answered with, is an error at once."""
    with pytest.raises(UnknownReplyError):
        Replies().feed(data)


def test_encode():
    """Words have their length in bytes, whatever they are made of."""
    assert encode(("SETEX", b"k\xff", 5, "é")) == (
        b"*4\r\n$5\r\nSETEX\r\n$2\r\nk\xff\r\n$1\r\n5\r\n$2\r\n\xc3\xa9\r\n"
    )
