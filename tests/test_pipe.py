"""celery_asyncpool/pipe.py: messages through a real socketpair."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from celery_asyncpool import pipe as pipe_module
from celery_asyncpool.core.protocol import HEADER, Kind, Message, ProtocolError, encode
from celery_asyncpool.pipe import Pipe

TASK = encode(Kind.TASK, 1, b"a body")
READY = encode(Kind.READY, 1, b"a result")


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@pytest.fixture
def pipe(sockets) -> Pipe:
    return Pipe(sockets[0])


@pytest.fixture
def peer(sockets) -> Pipe:
    return Pipe(sockets[1])


def fill(pipe: Pipe) -> list[Message]:
    """Write frames until the kernel takes no more; return their messages."""
    messages = []
    while pipe.flush():
        assert len(messages) < 1000, "the socket is never full"
        messages.append(Message(Kind.TASK, len(messages) + 1, b"x" * 50_000))
        pipe.write(encode(*messages[-1]))
    return messages


def test_pipe_is_non_blocking(sockets):
    """A pipe never blocks, whatever its socket did before."""
    sockets[0].setblocking(True)

    pipe = Pipe(sockets[0])

    assert sockets[0].getblocking() is False
    assert pipe.fileno() == sockets[0].fileno()
    assert pipe.read() == []
    assert not pipe.eof


def test_write_sends_nothing_by_itself(pipe, peer):
    """What is written waits for a flush."""
    pipe.write(TASK)

    assert peer.read() == []
    assert (pipe.written, pipe.sent, pipe.unsent) == (len(TASK), 0, len(TASK))
    assert repr(pipe) == f"<Pipe {len(TASK)} bytes to send>"


def test_flush_sends_all_frames_in_order(pipe, peer):
    """A flush sends all that was written, and says that nothing is left."""
    pipe.write(TASK)
    pipe.write(READY)

    done = pipe.flush()

    assert done is True
    assert (pipe.written, pipe.sent, pipe.unsent) == (len(TASK + READY), len(TASK + READY), 0)
    assert peer.read() == [Message(Kind.TASK, 1, b"a body"), Message(Kind.READY, 1, b"a result")]


def test_flush_of_nothing(pipe):
    """A flush with nothing to send is done."""
    assert pipe.flush() is True
    assert (pipe.written, pipe.sent) == (0, 0)


def test_flush_into_full_socket(pipe, peer):
    """A full socket is told by False; what it did not take is kept, and counted."""
    fill(pipe)

    assert pipe.flush() is False
    assert pipe.unsent > 0
    assert pipe.sent > 0
    assert pipe.sent + pipe.unsent == pipe.written
    assert not pipe.eof


def test_full_socket_loses_nothing(pipe, peer):
    """All that was written into a full socket arrives once the other end reads."""
    messages = fill(pipe)

    received = list(peer.read_to_end())
    while not pipe.flush():
        received += peer.read_to_end()
    received += peer.read_to_end()

    assert received == messages
    assert pipe.sent == pipe.written


def test_sent_tells_when_a_message_has_left(pipe, peer):
    """A message has left when `sent` has reached what `written` was after it."""
    fill(pipe)
    pipe.write(READY)
    mark = pipe.written

    before = pipe.sent
    while not pipe.flush():
        list(peer.read_to_end())

    assert before < mark == pipe.sent
    assert list(peer.read_to_end())[-1] == Message(Kind.READY, 1, b"a result")


def test_read_of_partial_frames(sockets, pipe):
    """A frame that arrives byte by byte is one message, with its last byte."""
    received = []
    for position in range(len(TASK)):
        assert received == []
        sockets[1].send(TASK[position : position + 1])
        received += pipe.read()

    assert received == [Message(Kind.TASK, 1, b"a body")]


def test_read_takes_one_buffer(monkeypatch, sockets, pipe):
    """One read takes no more than one buffer, so that other processes get their turn."""
    monkeypatch.setattr(pipe_module, "READ_SIZE", len(TASK))
    sockets[1].send(TASK + READY)

    first, second = pipe.read(), pipe.read()

    assert [message.kind for message in first] == [Kind.TASK]
    assert [message.kind for message in second] == []
    assert [message.kind for message in pipe.read()] == [Kind.READY]


def test_read_at_end_of_file(sockets, pipe):
    """The end of the stream is told after the last message, not with it."""
    sockets[1].send(TASK)
    sockets[1].close()

    messages = pipe.read()
    eof_with_messages = pipe.eof
    rest = pipe.read()

    assert messages == [Message(Kind.TASK, 1, b"a body")]
    assert eof_with_messages is False
    assert rest == []
    assert pipe.eof
    assert repr(pipe) == "<Pipe 0 bytes to send eof>"


def test_read_after_peer_closed_with_unread_bytes(pipe, peer):
    """A connection reset is an end of file, and comes after what was sent before."""
    pipe.write(TASK)
    pipe.flush()
    peer.write(READY)
    peer.flush()
    peer.close()

    messages = pipe.read()
    rest = pipe.read()

    assert messages == [Message(Kind.READY, 1, b"a result")]
    assert rest == []
    assert pipe.eof


def test_read_of_garbage(sockets, pipe):
    """Bytes that are not ours raise, at this read and at the next."""
    sockets[1].send(b"Segmentation fault (core dumped)")

    with pytest.raises(ProtocolError, match="not a frame"):
        pipe.read()

    sockets[1].send(TASK)
    with pytest.raises(ProtocolError, match="broken before"):
        pipe.read()


def test_flush_to_closed_peer(pipe, peer):
    """What cannot reach a closed peer is dropped, and nothing is left to send."""
    peer.close()
    pipe.write(TASK)

    done = pipe.flush()

    assert done is True
    assert (pipe.unsent, pipe.sent, pipe.written) == (0, 0, len(TASK))


def test_flush_to_closed_peer_with_unread_bytes(pipe, peer):
    """A peer that went without reading, which resets the connection, is a closed peer."""
    pipe.write(TASK)
    pipe.flush()
    peer.close()

    pipe.write(TASK)
    done = pipe.flush()

    assert done is True
    assert pipe.sent == len(TASK)
    assert pipe.read() == []
    assert pipe.read() == []
    assert pipe.eof


def test_flush_to_closed_peer_keeps_what_it_wrote(pipe, peer):
    """What a process wrote before it died is read, though something was sent to it after."""
    peer.write(READY)
    peer.flush()
    peer.close()
    pipe.write(TASK)
    pipe.flush()

    messages = list(pipe.read_to_end())

    assert messages == [Message(Kind.READY, 1, b"a result")]
    assert pipe.eof


def test_read_to_end_of_closed_peer(pipe, peer):
    """All that a process wrote before its end is returned."""
    messages = fill(peer)
    unsent = peer.unsent
    peer.close()

    received = list(pipe.read_to_end())

    assert unsent > 0
    assert received == messages[: len(received)]
    assert len(received) == peer.sent // (HEADER.size + 50_000)
    assert pipe.eof


def test_read_to_end_with_end_still_open(monkeypatch, pipe, peer):
    """A descendant that keeps its end open does not keep the parent waiting."""
    monkeypatch.setattr(pipe_module, "READ_SIZE", 5)
    for frame in (TASK, READY, TASK):
        peer.write(frame)
    peer.flush()

    received = list(pipe.read_to_end())

    assert [message.kind for message in received] == [Kind.TASK, Kind.READY, Kind.TASK]
    assert not pipe.eof


@pytest.mark.parametrize("is_closed", [True, False])
@pytest.mark.parametrize("cut", [1, HEADER.size, len(READY) - 1])
def test_read_to_end_in_the_middle_of_a_frame(sockets, pipe, cut, is_closed):
    """A frame that was cut off by the process's death is no message."""
    sockets[1].send(TASK + READY[:cut])
    if is_closed:
        sockets[1].close()

    received = list(pipe.read_to_end())

    assert received == [Message(Kind.TASK, 1, b"a body")]
    assert pipe.eof is is_closed


def test_read_to_end_with_nothing(pipe):
    """Of a process that wrote nothing nothing is read."""
    assert list(pipe.read_to_end()) == []
    assert not pipe.eof


def test_read_to_end_after_eof(sockets, pipe):
    """What has been read to its end stays so."""
    sockets[1].close()
    pipe.read()

    assert list(pipe.read_to_end()) == []
    assert pipe.eof


def test_shut(sockets, pipe, peer):
    """The other end reads its end of file; the descriptor stays open and sends nothing."""
    pipe.write(TASK)
    descriptor = pipe.fileno()

    pipe.shut()
    pipe.write(READY)
    done = pipe.flush()

    assert done is True
    assert pipe.eof
    assert pipe.fileno() == descriptor == sockets[0].fileno()
    assert (pipe.unsent, pipe.sent) == (0, 0)
    assert peer.read() == []
    assert peer.eof


def test_shut_lets_the_peer_read_what_was_sent(pipe, peer):
    """What has left before the shut is read before the end of file."""
    pipe.write(TASK)
    pipe.flush()

    pipe.shut()

    assert list(peer.read_to_end()) == [Message(Kind.TASK, 1, b"a body")]
    assert peer.eof


@pytest.mark.parametrize("times", [1, 2])
def test_shut_when_the_peer_is_gone(pipe, peer, times):
    """To shut a pipe whose other end is gone, or shut before, is harmless."""
    peer.close()

    for _ in range(times):
        pipe.shut()

    assert pipe.eof


def test_close(pipe, peer):
    """The other end reads its end of file, and the descriptor is given back."""
    pipe.write(TASK)

    pipe.close()

    assert pipe.fileno() == -1
    assert (pipe.eof, pipe.unsent) == (True, 0)
    assert list(peer.read_to_end()) == []
    assert peer.eof


class InterruptedSocket:
    """A handler runs right after its first send."""

    def __init__(self, sock, handler):
        self.sock = sock
        self.handler = handler

    def __getattr__(self, name):
        return getattr(self.sock, name)

    def send(self, data):
        count = self.sock.send(data)
        handler, self.handler = self.handler, lambda: None
        handler()
        return count


def test_flush_in_a_signal_handler(pipe, peer):
    """A handler that flushes too, while a flush is on its way, sends nothing twice."""

    def handler():
        pipe.write(encode(Kind.CANCEL, 7))
        assert not pipe.flush()

    pipe._sock = InterruptedSocket(pipe._sock, handler)
    pipe.write(encode(Kind.TASK, 1, b"x"))

    assert pipe.flush()
    assert list(peer.read_to_end()) == [
        Message(Kind.TASK, 1, b"x"),
        Message(Kind.CANCEL, 7, b""),
    ]
