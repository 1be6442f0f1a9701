"""A record of what tasks, handlers and signals saw, that tests can read.

Lines are appended with one write each, so that any number of processes may
record at once, whatever the broker is.
"""

import json
import os
from pathlib import Path

VARIABLE = "ASYNCPOOL_TEST_RECORD"


def record(what, **fields):
    line = json.dumps({"what": what, "pid": os.getpid(), **fields}) + "\n"
    fd = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


class Reader:
    """Reads what is recorded in *path*, as it grows."""

    def __init__(self, path):
        self._path = Path(path)
        self._position = 0
        self._lines = []

    def read(self):
        """All whole lines so far: a reader may see the half of one that is being written."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._position)
                whole = file.read().rpartition(b"\n")
            text = whole[0] + whole[1]
            self._position += len(text)
            self._lines += [json.loads(line) for line in text.splitlines()]
        return self._lines
