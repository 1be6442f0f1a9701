"""Tasks and settings for tests of what becomes of the worker's processes."""

import asyncio
import gc
import json
import os
import signal
import socket
import stat
from collections import Counter

from .base import make_app
from .recording import record

app = make_app("processes")
app.conf.update(json.loads(os.environ.get("PROCESSES_CONF", "{}")))

hoard = []


async def _gate(path):
    while not os.path.exists(path):
        await asyncio.sleep(0.02)


@app.task
async def hold(gate, name=None):
    """Run until the file *gate* is there."""
    record("started", name=name)
    await _gate(gate)
    record("ended", name=name)
    return os.getpid()


@app.task(acks_late=True, reject_on_worker_lost=True)
async def hold_late(gate, name=None):
    """The same, delivered again when its process is lost."""
    record("started", name=name)
    await _gate(gate)
    record("ended", name=name)
    return os.getpid()


@app.task
async def pid():
    return os.getpid()


@app.task
def pid_of_def():
    return os.getpid()


@app.task
async def hog(megabytes):
    """Keep so much memory."""
    hoard.append(b"x" * (megabytes * 1024 * 1024))
    return os.getpid()


@app.task(acks_late=True, reject_on_worker_lost=True)
async def poison():
    """Take this process down."""
    record("poisoned")
    os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(600)


@app.task
async def leave_sleeper(session):
    """Start a subprocess that outlives the task."""
    process = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=session)
    return process.pid


def _peer(fd):
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return None
    with socket.socket(fileno=os.dup(fd)) as sock:
        try:
            return sock.getpeername()
        except OSError:
            return None


@app.task
async def inherited():
    """What this process holds: connections, descriptors by kind, frozen objects."""
    peers, kinds = [], Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{name}")
            peer = _peer(int(name))
        except OSError:
            continue  # the one that listed them
        kinds[link if link.startswith("anon_inode") else link.partition(":")[0]] += 1
        if isinstance(peer, tuple):
            peers.append(peer[1])
    return {"ports": peers, "kinds": kinds, "frozen": gc.get_freeze_count(), "pid": os.getpid()}
