"""Files that appear when they are complete."""

from __future__ import annotations

import contextlib
import os
import uuid

__all__ = ["create_whole", "write_whole"]


def write_whole(path: str, content: bytes) -> None:
    """Make *content* the file at *path*, for its readers at one moment; raises ``OSError``."""
    part = _write_beside(path, content)
    try:
        os.rename(part, path)
    except BaseException:
        _remove(part)
        raise


def create_whole(path: str, content: bytes) -> None:
    """As :func:`write_whole`, but a file that is there stays as it is."""
    part = _write_beside(path, content)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(part, path)
    finally:
        _remove(part)


def _write_beside(path: str, content: bytes) -> str:
    # No name of a message to kombu, of a result to Celery, or of a table to either:
    # kombu 5.5 takes all that have ".<queue>.msg" somewhere for messages.
    part = os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}")
    try:
        with open(part, "xb") as file:
            file.write(content)
    except BaseException:
        _remove(part)
        raise
    return part


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
