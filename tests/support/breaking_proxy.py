"""A TCP proxy before Girder that cuts connections in the middle."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class BreakingProxy:
    """A proxy that records requests, and cuts or holds connections.

    ``cuts`` are numbers of bytes: each of the next connections is cut after that many bytes in one
    direction. ``requests`` are the first lines and the headers of the requests.
    """

    url: str = ""
    target: tuple[str, int] = ("", 0)
    cuts: list[int] = field(default_factory=list)
    done: int = 0
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    held_at: float = float("inf")
    gate: threading.Event = field(default_factory=threading.Event)

    def hold(self, passed: int) -> None:
        """Hold each connection after ``passed`` bytes, until :meth:`go_on` is called."""
        self.gate.clear()
        self.held_at = passed

    def go_on(self) -> None:
        """Release all connections."""
        self.held_at = float("inf")
        self.gate.set()

    def serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed at the end
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self.target)
                for source, sink, asks in ((client, server, True), (server, client, False)):
                    arguments = (source, sink, asks)
                    threading.Thread(target=self.pump, args=arguments, daemon=True).start()

    def pump(self, source: socket.socket, sink: socket.socket, asks: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if asks and b" HTTP/1.1\r\n" in data:
                    self.requests.append(data.partition(b"\r\n\r\n")[0].decode("latin-1"))
                passed += len(data)
                if passed >= self.held_at:
                    self.gate.wait(60)
                if self.cut(passed):
                    sink.sendall(data[: len(data) // 2])
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self, passed: int) -> bool:
        with self.lock:
            if not self.cuts or passed < self.cuts[0]:
                return False
            self.cuts.pop(0)
            self.done += 1
            return True


@contextlib.contextmanager
def breaking_proxy(api: str) -> Iterator[BreakingProxy]:
    """Run a proxy before the REST API of a Girder."""
    url = urlsplit(api)
    proxy = BreakingProxy(target=(str(url.hostname), int(url.port or 80)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # so that hold() holds
        proxy.url = f"http://127.0.0.1:{listener.getsockname()[1]}{url.path}"
        thread = threading.Thread(target=proxy.serve, args=(listener,), daemon=True)
        thread.start()
        yield proxy
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
