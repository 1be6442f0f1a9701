"""A Redis of the benchmark's own, with nothing else in it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

import redis

__all__ = ["private_redis"]

START_TIMEOUT = 10.0


@contextlib.contextmanager
def private_redis() -> Iterator[str]:
    """Run ``redis-server`` on a free port, in a folder of its own; yield its URL.

    It keeps everything in memory and is ended with the block. Raises
    ``FileNotFoundError`` where Redis is not installed, ``RuntimeError`` when it
    does not start.
    """
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="benchmarks-redis-") as folder:
        command = ("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder)
        server = subprocess.Popen(
            (*command, "--save", "", "--appendonly", "no"), stdout=subprocess.DEVNULL
        )
        try:
            _wait_until_up(server, port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _wait_until_up(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    with redis.Redis(port=port) as client:
        while server.poll() is None and time.monotonic() < deadline:
            try:
                client.ping()
            except redis.ConnectionError:
                time.sleep(0.02)
            else:
                return
    raise RuntimeError(f"redis-server did not start on port {port}")
