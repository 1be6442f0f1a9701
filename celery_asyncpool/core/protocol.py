"""Messages between the worker's main process and its worker processes.

A frame is a fixed header (payload length, kind, job id) and a payload. Kind
and job are in the header, outside the payload, so that a payload that cannot
be decoded fails one job and never the stream.

======== ========= ==========================================================
kind     direction payload
======== ========= ==========================================================
TASK     to child  pickled ``(target, args, kwargs, soft, hard)``: run this job
CANCEL   to child  none: end this job's body
DRAIN    to child  none: no more jobs come; finish those you have, then exit
ABORT    to child  none: end all bodies, report nothing more of them, and exit
WORKER_UP to parent none: ready for jobs
ACK      to parent ``!d`` monotonic seconds: accepted; sent before the first step
STARTED  to parent ``!d`` monotonic seconds: the body starts; only with a hard limit
CANCELLED to parent none: the body is cancelled, by its hard limit or CANCEL
LIMIT    to parent ``soft`` or ``hard``: that limit of the body is over
OVER     to parent none: what was to be ended has ended, or there is nothing to end;
                   what comes now has no limit
STUCK    to parent pickled ``(verdict, stack, outcome)``: what is to end refuses; report
                   the verdict, or the outcome, a READY's payload, where there is one
READY    to parent pickled ``(succeeded, value)``: the job's end, its slot is free;
                   empty where there is nothing to report (any more)
STATUS   to parent pickled dict of counters, for ``inspect stats``
======== ========= ==========================================================
"""

from __future__ import annotations

import pickle
import struct
from enum import IntEnum
from typing import Any, NamedTuple

__all__ = [
    "HARD",
    "MAX_PAYLOAD",
    "SOFT",
    "Framer",
    "Kind",
    "Message",
    "PayloadTooLarge",
    "ProtocolError",
    "check_size",
    "decode_time",
    "dumps",
    "encode",
    "encode_time",
    "loads",
]

HEADER = struct.Struct("!IBQ")
TIME = struct.Struct("!d")

#: Largest payload in bytes; a frame that claims more is not ours.
MAX_PAYLOAD = 2**31 - 1


class Kind(IntEnum):
    """What a message says."""

    WORKER_UP = 1
    TASK = 2
    ACK = 3
    READY = 4
    STATUS = 5
    DRAIN = 6
    CANCEL = 7
    STARTED = 8
    CANCELLED = 9
    STUCK = 10
    ABORT = 11
    LIMIT = 12
    OVER = 13


#: Payloads of LIMIT.
SOFT, HARD = b"soft", b"hard"

KINDS = {int(kind): kind for kind in Kind}


class Message(NamedTuple):
    """One decoded frame. *job_id* is 0 where the message concerns no job."""

    kind: Kind
    job_id: int
    payload: bytes


class ProtocolError(Exception):
    """The bytes are not frames of this protocol: the stream cannot be trusted."""


class PayloadTooLarge(ValueError):
    """A payload is larger than :data:`MAX_PAYLOAD`."""


def encode(kind: Kind, job_id: int = 0, payload: bytes = b"") -> bytes:
    """Return the frame of one message.

    Raises :exc:`PayloadTooLarge` for a *payload* over :data:`MAX_PAYLOAD` bytes.
    """
    check_size(payload)
    return HEADER.pack(len(payload), kind, job_id) + payload


def check_size(payload: bytes) -> None:
    """Raise :exc:`PayloadTooLarge` for a *payload* that no message can have."""
    size = len(payload)
    if size > MAX_PAYLOAD:
        raise PayloadTooLarge(
            f"a message of {size} bytes is over the limit of {MAX_PAYLOAD} bytes "
            "between the worker and its processes; pass large data by reference"
        )


def encode_time(kind: Kind, job_id: int, seconds: float) -> bytes:
    """Return the frame of a message whose payload is one point in time."""
    return HEADER.pack(TIME.size, kind, job_id) + TIME.pack(seconds)


def decode_time(payload: bytes) -> float:
    """Return the seconds that :func:`encode_time` wrote."""
    seconds: float = TIME.unpack(payload)[0]
    return seconds


def dumps(value: Any) -> bytes:
    """Pickle *value* for a payload; raises whatever its pickling raises."""
    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


def loads(payload: bytes) -> Any:
    """Unpickle a payload; raises whatever its unpickling raises."""
    return pickle.loads(payload)


class Framer:
    """Bytes in, messages out; any split of the bytes gives the same messages."""

    __slots__ = ("_broken", "_buffer")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._broken = False

    def __repr__(self) -> str:
        state = " broken" if self._broken else ""
        return f"<Framer {len(self._buffer)} bytes pending{state}>"

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes from the pipe; return the messages that they complete.

        Keeps the incomplete rest. After a :exc:`ProtocolError` the framer is
        unusable and raises it again: give the process up.
        """
        if self._broken:
            raise ProtocolError("the stream was broken before")
        buffer = self._buffer
        buffer += data
        messages = []
        position = 0
        available = len(buffer)
        while available - position >= HEADER.size:
            size, code, job_id = HEADER.unpack_from(buffer, position)
            kind = KINDS.get(code)
            if kind is None or size > MAX_PAYLOAD:
                self._broken = True
                raise ProtocolError(f"not a frame: kind {code}, length {size}")
            start = position + HEADER.size
            if available - start < size:
                break
            position = start + size
            messages.append(Message(kind, job_id, bytes(buffer[start:position])))
        if position:
            del buffer[:position]
        return messages

    @property
    def pending(self) -> int:
        """Bytes of an incomplete frame that are held."""
        return len(self._buffer)
