"""Requests to an engine, against a server of its protocol that fails on demand."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from girder_dask.docker.engine_api import EngineApi, EngineRefusal
from girder_dask.errors import ContainerError


@contextlib.contextmanager
def answering(directory: Path, *parts: bytes) -> Iterator[EngineApi]:
    """Answer one request with these parts, in one packet each, then close the connection."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(directory / "s"))
    server.listen()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            for part in parts:
                connection.sendall(part)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield EngineApi(str(directory / "s"))
    finally:
        thread.join()
        server.close()


def test_call_returns_the_json_value(tmp_path: Path) -> None:
    with answering(tmp_path, b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}') as api:
        assert api.call("GET", "/x") == {"a": 1}


def test_call_raises_what_the_engine_says(tmp_path: Path) -> None:
    body = b'{"message": "No such image: x"}'
    head = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n" % len(body)
    with answering(tmp_path, head + body) as api, pytest.raises(EngineRefusal) as raised:
        api.call("GET", "/x")
    assert (str(raised.value), raised.value.status) == ("No such image: x", 404)


@pytest.mark.parametrize("parts", [(), (b"nonsense\r\n",), (b"HTTP/1.1 200 OK\r\n\r\n{",)])
def test_call_explains_an_engine_that_breaks(tmp_path: Path, parts: tuple[bytes, ...]) -> None:
    with (
        answering(tmp_path, *parts) as api,
        pytest.raises(ContainerError, match="does not answer as expected"),
    ):
        api.call("GET", "/x")


def test_attach_keeps_what_comes_with_the_head(tmp_path: Path) -> None:
    head = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\n\r\n"
    with answering(tmp_path, head[:20], head[20:] + b"frame") as api:
        connection, first = api.attach("c")
        with connection:
            assert first + connection.recv(9) == b"frame"


def test_attach_raises_what_the_engine_says(tmp_path: Path) -> None:
    head = b"HTTP/1.1 409 Conflict\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b'17\r\n{"message": "no runc"}\n\r\n'
    with answering(tmp_path, head, body) as api, pytest.raises(EngineRefusal) as raised:
        api.attach("c")
    assert (str(raised.value), raised.value.status) == ("no runc", 409)


def test_a_missing_engine_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match=r"no container engine at .*Install") as raised:
        EngineApi(str(tmp_path / "absent")).call("GET", "/_ping")
    assert raised.value.permanent


def test_an_engine_that_does_not_run_is_explained(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "s"))
    left.close()
    with pytest.raises(ContainerError, match=r"does not run\. Start it"):
        EngineApi(str(tmp_path / "s")).call("GET", "/_ping")


def test_a_socket_of_others_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(ContainerError, match=r"may not use the container engine.*group"):
        EngineApi(str(tmp_path / "s")).call("GET", "/_ping")


def test_a_directory_is_no_engine(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ContainerError):
        EngineApi(str(tmp_path / "pipe")).call("GET", "/_ping")
