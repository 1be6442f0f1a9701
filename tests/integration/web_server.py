"""uvicorn in a subprocess, and those who use it."""

import os
import resource
import signal
import subprocess
import sys

import httpx
from worker import HERE, PATIENCE, wait_for

from tests.servers import free_port


class WebServer:
    """uvicorn with *api*, which logs into *folder*."""

    def __init__(self, api, environment, folder):
        self._api = api
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = environment
        self._log = folder / "web.log"

    def __enter__(self):
        # A browser must not send a request while an idle connection is being closed.
        options = ("--no-access-log", "--timeout-keep-alive", 600)
        command = ("uvicorn", self._api, "--port", self.port, *options)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *map(str, command)],
                env={**os.environ, "PYTHONPATH": str(HERE), **self._environment},
                cwd=HERE,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=allow_descriptors,
            )
        wait_for(lambda: "Uvicorn running" in self.log(), self.log)
        return self

    def __exit__(self, exc_type, exc, traceback):
        self._process.send_signal(signal.SIGTERM if exc is None else signal.SIGKILL)
        self._process.wait(PATIENCE)
        if exc is not None:
            exc.add_note(f"the log of the web server:\n{self.log()}")

    def log(self):
        return self._log.read_text(errors="replace")


def allow_descriptors():
    """As many connections as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Browser(httpx.AsyncClient):
    """Whoever uses the web server, many at a time."""

    def __init__(self, server):
        limits = httpx.Limits(max_connections=None)
        super().__init__(base_url=server.url, limits=limits, timeout=PATIENCE, trust_env=False)

    async def add(self, x, y):
        return await self.post("/add", params={"x": x, "y": y})

    async def pulse(self):
        return (await self.get("/pulse")).json()
