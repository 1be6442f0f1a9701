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


def read(path):
    path = Path(path)
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]
