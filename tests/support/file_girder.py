"""An HTTP server that stores files like Girder, and fails on demand."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.support.local_girder import running


class Cut(Exception):
    """The connection breaks here."""


@dataclass
class FileGirder:
    """The content of the server, the requests to it, and its faults."""

    url: str = ""
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    #: The addresses from which requests came.
    connections: set[Any] = field(default_factory=set)
    #: Called before each answer with ``METHOD path``. It may return a status, or raise Cut.
    fault: Callable[[str], int | None] = lambda _: None
    #: Bytes after which each of the next downloads breaks.
    cuts: list[int] = field(default_factory=list)
    #: The targets of files that are links.
    links: dict[str, str] = field(default_factory=dict)
    #: Where downloads are redirected to, and what Girder says of that.
    elsewhere: str | None = None
    kind: str | None = "assetstore"
    #: Whether nothing is on its disk.
    lost: bool = False
    #: Whether parts of files are given.
    resumes: bool = True
    #: What happens to the next chunks: 'lost' is not heard of, 'unsaid' is not answered.
    chunks: list[str] = field(default_factory=list)

    def put(self, name: str, content: bytes, **more: Any) -> dict[str, Any]:
        made = f"id{len(self.documents)}"
        return self.replace(made, content, name=name, **more)

    def replace(self, file: str, content: bytes, **more: Any) -> dict[str, Any]:
        document = self.documents.get(file, {"_id": file}) | {
            "size": len(content),
            "created": f"time {len(self.asked)}-{len(self.contents)}",
            **more,
        }
        self.documents[file], self.contents[file] = document, content
        return document

    def count(self, what: str) -> int:
        return sum(asked == what for asked in self.asked)

    # -- uploads ------------------------------------------------------------------------------

    def begin(self, query: dict[str, str], file: str | None = None) -> dict[str, Any]:
        identifier = f"upload{len(self.asked)}"
        if int(query["size"]) == 0:
            return self.finish(query, b"", file)
        self.uploads[identifier] = {"query": query, "data": b"", "file": file}
        return {"_id": identifier}

    def chunk(self, query: dict[str, str], data: bytes) -> dict[str, Any]:
        upload = self.uploads[query["uploadId"]]
        assert len(upload["data"]) == int(query["offset"])
        fate = self.chunks.pop(0) if self.chunks else ""
        if fate == "lost":
            raise Cut
        upload["data"] += data[: len(data) // 2] if fate == "half" else data
        answer = {"_id": query["uploadId"]}
        if len(upload["data"]) == int(upload["query"]["size"]):
            del self.uploads[query["uploadId"]]
            answer = self.finish(upload["query"], upload["data"], upload["file"])
        if fate in ("half", "unsaid"):
            raise Cut
        return answer

    def finish(self, query: dict[str, str], data: bytes, file: str | None) -> dict[str, Any]:
        more = {"sha512": hashlib.sha512(data).hexdigest()}
        if file is not None:
            return self.replace(file, data, **more)
        return self.put(query["name"], data, parent=query["parentId"], asked=query, **more)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    peer: FileGirder

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path, query = url.path.removeprefix("/api/v1/"), dict(parse_qsl(url.query))
        what = f"{self.command} {path}"
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.peer.asked.append(what)
        self.peer.queries.append(url.query)
        self.peer.ranges.append(self.headers.get("Range"))
        self.peer.tokens.append(self.headers.get("Girder-Token"))
        self.peer.connections.add(self.client_address)
        try:
            status = self.peer.fault(what)
            if status is not None:
                self.answer({"message": f"Fault {status}"}, status)
            else:
                self.route(what, path.split("/"), query, body)
        except Cut:
            self.close_connection = True

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the names are the base class's

    def route(self, what: str, parts: list[str], query: dict[str, str], body: bytes) -> None:
        peer = self.peer
        if parts[-1] == "download" or parts[0] == "raw":
            self.download(parts[1])
        elif what == "POST file":
            self.answer(peer.begin(query))
        elif parts[-1] == "contents":
            self.answer(peer.begin(query, parts[1]))
        elif what == "POST file/chunk":
            self.answer(peer.chunk(query, body))
        elif what == "GET file/offset" and query["uploadId"] in peer.uploads:
            self.answer({"offset": len(peer.uploads[query["uploadId"]]["data"])})
        elif self.command == "DELETE" and parts[-1] in peer.uploads:
            del peer.uploads[parts[-1]]
            self.answer({"message": "Upload canceled."})
        elif parts[0] == "item":
            self.answer([d for d in peer.documents.values() if d.get("parent") == parts[1]])
        elif self.command == "GET" and parts[-1] in peer.documents:
            self.answer(peer.documents[parts[-1]])
        else:
            self.answer({"message": f"Invalid id {parts[-1]}"}, 400)

    def answer(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def download(self, file: str) -> None:
        peer = self.peer
        if peer.elsewhere is not None or file in peer.links:
            self.send_response(303)
            place = peer.links.get(file) or f"{peer.elsewhere}/raw/{file}"
            self.send_header("Location", place.encode().decode("latin-1"))
            if peer.kind is not None:
                self.send_header("Girder-Dask-Redirect", peer.kind)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if peer.lost:
            identifier = "girder.utility.filesystem_assetstore_adapter.file-does-not-exist"
            message = {"message": "File /x does not exist.", "identifier": identifier}
            self.answer(message, 500)
            return
        content = peer.contents[file]
        asked = self.headers.get("Range")
        first = int(asked.split("=")[1].rstrip("-")) if asked and peer.resumes else 0
        self.send_response(200)  # Girder's own status, also for a part
        if first:
            last = len(content) - 1
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        cut = peer.cuts.pop(0) if peer.cuts else None
        self.wfile.write(content[first:] if cut is None else content[first : first + cut])
        if cut is not None:
            self.wfile.flush()
            raise Cut

    def log_message(self, *_args: Any) -> None:
        pass


@contextlib.contextmanager
def serving_files() -> Iterator[FileGirder]:
    """Run the server."""
    peer = FileGirder()
    with running(type("Handler", (_Handler,), {"peer": peer})) as peer.url:
        yield peer
