"""What does it cost to take one message out of a full buffer?"""

from __future__ import annotations

from celery_asyncpool.core.protocol import Framer, Kind, encode

from .clock import report

COUNT = 500


def main() -> None:
    """Decode buffers of small and of large messages."""
    for size in (100, 65536):
        data = b"".join(encode(Kind.READY, number, b"x" * size) for number in range(COUNT))
        report(f"a message of {size} bytes", lambda data=data: Framer().feed(data), COUNT)


if __name__ == "__main__":
    main()
