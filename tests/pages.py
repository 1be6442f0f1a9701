"""A web server for browsers: pages that answer at once, and pages that wait."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any, Self
from urllib.parse import urlsplit


class Pages:
    """Serves ``/title/<text>``, and ``/held/<name>``, which answers after `release`."""

    def __init__(self) -> None:
        #: The paths that were asked for.
        self.asked: list[str] = []
        self._gates: dict[str, threading.Event] = {}
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.pages = self
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for gate in self._gates.values():
            gate.set()
        self._server.shutdown()
        self._server.server_close()

    def url(self, path: str) -> str:
        """The URL of *path*."""
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def release(self, name: str) -> None:
        """Let ``/held/<name>`` answer, now and from now on."""
        self.gate(name).set()

    def gate(self, name: str) -> threading.Event:
        """What ``/held/<name>`` waits for."""
        return self._gates.setdefault(name, threading.Event())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100
    pages: Pages


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        pages = self.server.pages
        path = urlsplit(self.path).path
        pages.asked.append(path)
        _, kind, *rest = PurePosixPath(path).parts
        text = "/".join(rest)
        if kind == "held":
            pages.gate(text).wait()
        body = f"<!doctype html><title>{text}</title><h1>{text}</h1>".encode()
        try:
            self.send_response(200 if kind in ("title", "held") else 404)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:
            return  # the browser has closed the page

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
