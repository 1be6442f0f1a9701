"""celery_asyncpool/core/protocol.py: bytes in, messages out."""

from __future__ import annotations

import pickle

import pytest

from celery_asyncpool.core import protocol
from celery_asyncpool.core.protocol import (
    HEADER,
    MAX_PAYLOAD,
    Framer,
    Kind,
    Message,
    PayloadTooLarge,
    ProtocolError,
    decode_time,
    dumps,
    encode,
    encode_time,
    loads,
)

MESSAGES = [
    Message(Kind.WORKER_UP, 0, b""),
    Message(Kind.TASK, 7, b"a body"),
    Message(Kind.ACK, 7, b"12345678"),
    Message(Kind.STARTED, 7, b"87654321"),
    Message(Kind.CANCEL, 7, b""),
    Message(Kind.CANCELLED, 7, b""),
    Message(Kind.STUCK, 7, b"where"),
    Message(Kind.DRAIN, 0, b""),
    Message(Kind.READY, 2**64 - 1, b"x" * 40),
]
STREAM = b"".join(encode(*message) for message in MESSAGES)

#: Not frames: an unknown kind, and a length that no sender of ours can claim.
GARBAGE = [
    HEADER.pack(0, 0, 1),
    HEADER.pack(0, 99, 1),
    HEADER.pack(MAX_PAYLOAD + 1, Kind.TASK, 1),
    b"Traceback (most recent call last):",
]


class ClaimsToBeHuge(bytes):
    """A payload over the limit that takes no memory."""

    def __len__(self) -> int:
        return MAX_PAYLOAD + 1


class FailsToPickle:
    def __reduce__(self) -> tuple[object, ...]:
        raise RuntimeError("not to be pickled")


def test_framer_at_every_split_point():
    """A stream that is cut in two anywhere gives the same messages."""
    for cut in range(len(STREAM) + 1):
        framer = Framer()

        messages = framer.feed(STREAM[:cut]) + framer.feed(STREAM[cut:])

        assert messages == MESSAGES, cut
        assert framer.pending == 0, cut


def test_framer_at_every_two_split_points():
    """A frame that comes in three pieces is one message, wherever it is cut."""
    frame = encode(Kind.TASK, 7, b"body")
    for first in range(len(frame) + 1):
        for second in range(first, len(frame) + 1):
            framer = Framer()
            pieces = frame[:first], frame[first:second], frame[second:]

            messages = [message for piece in pieces for message in framer.feed(piece)]

            assert messages == [Message(Kind.TASK, 7, b"body")], (first, second)


def test_framer_byte_by_byte():
    """A message is returned with its last byte, and none earlier."""
    framer = Framer()
    complete_after = []

    for position in range(len(STREAM)):
        complete_after += [position + 1] * len(framer.feed(STREAM[position : position + 1]))

    sizes = [HEADER.size + len(message.payload) for message in MESSAGES]
    assert complete_after == [sum(sizes[: count + 1]) for count in range(len(sizes))]


def test_framer_with_all_at_once():
    """All messages of one read are returned in order."""
    framer = Framer()

    messages = framer.feed(STREAM)

    assert messages == MESSAGES
    assert framer.pending == 0


def test_framer_with_no_bytes():
    """Nothing in, nothing out, and nothing held."""
    framer = Framer()

    messages = framer.feed(b"")

    assert messages == []
    assert repr(framer) == "<Framer 0 bytes pending>"


def test_framer_at_end_of_file_in_header():
    """A header that never becomes complete is no message; it stays pending."""
    framer = Framer()

    messages = framer.feed(STREAM + STREAM[: HEADER.size - 1])

    assert messages == MESSAGES
    assert framer.pending == HEADER.size - 1


def test_framer_at_end_of_file_in_payload():
    """A payload that never becomes complete is no message; it stays pending."""
    frame = encode(Kind.READY, 7, b"a result")
    framer = Framer()

    messages = framer.feed(frame[:-1])

    assert messages == []
    assert framer.pending == len(frame) - 1


def test_framer_keeps_payload_apart_from_its_buffer():
    """A message's payload is bytes of its own, whatever is fed later."""
    framer = Framer()
    (message,) = framer.feed(encode(Kind.TASK, 1, b"first"))

    framer.feed(encode(Kind.TASK, 2, b"other"))

    assert type(message.payload) is bytes
    assert message.payload == b"first"


def test_framer_takes_any_buffer():
    """A bytearray and a memoryview are as good as bytes."""
    framer = Framer()

    messages = framer.feed(bytearray(STREAM)) + framer.feed(memoryview(STREAM))

    assert messages == MESSAGES * 2


@pytest.mark.parametrize("garbage", GARBAGE)
def test_framer_with_garbage(garbage):
    """Bytes that are no frame of ours raise, and the framer says that it is broken."""
    framer = Framer()

    with pytest.raises(ProtocolError, match=r"not a frame: kind .*, length"):
        framer.feed(garbage)

    assert repr(framer).endswith("pending broken>")


@pytest.mark.parametrize("garbage", GARBAGE)
def test_framer_with_garbage_byte_by_byte(garbage):
    """Garbage is told as soon as a whole header of it is there."""
    framer = Framer()
    for position in range(HEADER.size - 1):
        framer.feed(garbage[position : position + 1])

    with pytest.raises(ProtocolError, match="not a frame"):
        framer.feed(garbage[HEADER.size - 1 : HEADER.size])


def test_framer_with_garbage_behind_messages():
    """Messages that came before garbage in an earlier read are not lost."""
    framer = Framer()

    messages = framer.feed(STREAM)
    with pytest.raises(ProtocolError, match="not a frame"):
        framer.feed(GARBAGE[0])

    assert messages == MESSAGES


def test_framer_after_broken():
    """A broken framer raises for whatever comes, good frames and nothing included."""
    framer = Framer()
    with pytest.raises(ProtocolError):
        framer.feed(GARBAGE[0])

    for data in (STREAM, b"", GARBAGE[0]):
        with pytest.raises(ProtocolError, match="broken before"):
            framer.feed(data)


def test_framer_with_largest_length():
    """A frame of the largest allowed payload is waited for, not refused."""
    framer = Framer()

    messages = framer.feed(HEADER.pack(MAX_PAYLOAD, Kind.TASK, 1))

    assert messages == []
    assert framer.pending == HEADER.size


def test_encode_of_oversize_payload():
    """A payload over the limit raises before any byte of it is framed."""
    with pytest.raises(PayloadTooLarge, match=f"{MAX_PAYLOAD + 1} bytes.*{MAX_PAYLOAD} bytes"):
        encode(Kind.TASK, 1, ClaimsToBeHuge())


def test_encode_at_the_limit(monkeypatch):
    """A payload of exactly the limit is framed, and read by a framer with it."""
    monkeypatch.setattr(protocol, "MAX_PAYLOAD", 5)

    frame = encode(Kind.TASK, 1, b"12345")

    assert Framer().feed(frame) == [Message(Kind.TASK, 1, b"12345")]
    with pytest.raises(PayloadTooLarge):
        encode(Kind.TASK, 1, b"123456")


@pytest.mark.parametrize("kind", list(Kind))
def test_encode_of_every_kind(kind):
    """Each kind of message comes out as it went in."""
    assert Framer().feed(encode(kind, 3, b"?")) == [Message(kind, 3, b"?")]


def test_encode_without_job_and_payload():
    """A message that concerns no job has the job id 0 and no payload."""
    assert Framer().feed(encode(Kind.DRAIN)) == [Message(Kind.DRAIN, 0, b"")]


@pytest.mark.parametrize("kind", [Kind.ACK, Kind.STARTED])
@pytest.mark.parametrize("seconds", [0.0, 12.5, 1e9 + 1e-6, -1.0])
def test_encode_time_keeps_time_exactly(kind, seconds):
    """A point in time comes out as the very number that went in."""
    (message,) = Framer().feed(encode_time(kind, 7, seconds))

    assert message[:2] == (kind, 7)
    assert decode_time(message.payload) == seconds


def test_dumps_and_loads():
    """What can be pickled comes out equal."""
    value = ("proj.add", (1, 2), {"key": [b"\0", None]})

    assert loads(dumps(value)) == value


def test_dumps_of_unpicklable():
    """What cannot be pickled raises its own error."""
    with pytest.raises(RuntimeError, match="not to be pickled"):
        dumps(FailsToPickle())


def test_loads_of_garbage_does_not_break_the_stream():
    """A payload that cannot be decoded fails its job; the next frame is read."""
    framer = Framer()

    first, second = framer.feed(
        encode(Kind.READY, 1, b"not a pickle") + encode(Kind.READY, 2, dumps((True, 3)))
    )

    with pytest.raises(pickle.UnpicklingError):
        loads(first.payload)
    assert loads(second.payload) == (True, 3)
