"""A small HTTP server that answers like Girder, as defined by a test."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any]


@dataclass
class Peer:
    """The requests to a server, and its answers: by ``METHOD path`` a value or a function."""

    url: str = ""
    answers: dict[str, Answer | Callable[[Peer], Answer]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    clients: list[tuple[str, int]] = field(default_factory=list)
    locations: dict[str, str] = field(default_factory=dict)
    cookie: str | None = None
    more: dict[str, str] = field(default_factory=dict)

    def answer(self, what: str) -> Answer:
        found = self.answers.get(what, (404, {"message": f"No matching route for {what}"}))
        return found(self) if callable(found) else found


@contextlib.contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Peer]:
    """Run a server that answers as its :class:`Peer` says, by https if there is a context."""
    peer = Peer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            what = f"{self.command} {self.path.partition('/api/v1/')[2]}"
            peer.bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            peer.headers.append(dict(self.headers))
            peer.clients.append(self.client_address)
            peer.asked.append(what)
            status, body = peer.answer(what)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if what in peer.locations:
                self.send_header("Location", peer.locations[what])
            for name, value in peer.more.items():
                self.send_header(name, value)
            if peer.cookie is not None:
                self.send_header("Set-Cookie", peer.cookie)
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the names are the base class's

        def log_message(self, *_args: Any) -> None:
            pass

    with running(Handler, tls) as peer.url:
        yield peer


@contextlib.contextmanager
def running(
    handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Run an HTTP server in threads of this process. Yields the address of its REST API."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        scheme_and_host = "http://127.0.0.1" if tls is None else "https://localhost"
        yield f"{scheme_and_host}:{server.server_port}/api/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
