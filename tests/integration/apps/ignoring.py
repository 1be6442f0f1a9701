"""A project that ignores SIGCHLD, as the program that starts a worker may."""

import os
import signal

from .base import make_app

signal.signal(signal.SIGCHLD, signal.SIG_IGN)

app = make_app("ignoring")


@app.task
async def pid():
    return os.getpid()


@app.task
async def die():
    os.kill(os.getpid(), signal.SIGKILL)
