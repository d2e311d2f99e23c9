"""An HTTP server that keeps the bodies it is sent in chunks."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["ChunkReceiver", "receiving_chunks"]


class ChunkReceiver(http.server.ThreadingHTTPServer):
    """The server.

    Attributes
    ----------
    received
        The path, the header ``Key`` and the body of each request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[tuple[str, str | None, bytes]] = []

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChunkReceiver

    def do_POST(self) -> None:
        body = b""
        while n := int(self.rfile.readline(), 16):
            body += self.rfile.read(n)
            self.rfile.readline()
        self.rfile.readline()
        path = self.path.rstrip("?")  # which girder_worker adds
        self.server.received.append((path, self.headers.get("Key"), body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Print nothing."""


@contextlib.contextmanager
def receiving_chunks() -> Iterator[ChunkReceiver]:
    """Run a server of this kind."""
    server = ChunkReceiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
