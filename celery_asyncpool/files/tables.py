"""The tables of bindings: one file for each exchange, which says who gets its messages.

kombu writes a table in place, under a lock, but creates it before it locks it: who
reads between the two finds it empty, and two who create one at once may leave the end
of the longer one behind the shorter one, for good.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from typing import Any

from celery.utils.log import get_logger

from .writing import create_whole

__all__ = ["create_table", "mend_table"]

logger = get_logger(__name__)


def create_table(path: str) -> None:
    """Make an empty table where there is none, and its folder; raises ``OSError``."""
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        create_whole(path, b"[]")


def mend_table(path: str, known: Iterable[Iterable[str]]) -> None:
    """Make a table that cannot be read one again; one that can be read stays as it is.

    It keeps what can be read of it, and has the *known* bindings. Raises ``OSError``.
    """
    with open(path, "rb+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = file.read().decode(errors="replace")
        rows, is_whole = _rows(text)
        if is_whole:
            return
        rows += [row for row in map(list, known) if row not in rows]
        file.seek(0)
        file.truncate()
        file.write(json.dumps(rows).encode())
    logger.warning(
        "%s could not be read: who wrote it was killed, or somebody else wrote it at the same "
        "time. It has these bindings now: %s. A worker whose binding is missing gets no remote "
        "control; restart it",
        path,
        rows,
    )


def _rows(text: str) -> tuple[list[list[str]], bool]:
    """Return the bindings at the beginning of *text*, and whether they are all of it."""
    try:
        rows, end = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return [], False
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        return [], False
    return rows, not text[end:].strip()


def _is_row(row: Any) -> bool:
    return isinstance(row, list) and len(row) == 3 and all(isinstance(x, str) for x in row)
