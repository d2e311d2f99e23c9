"""Output of containers that docker-py has read together with the head of the engine's answer."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest
from docker.api.client import APIClient

from girder_dask.celery.docker_output import drain_ended_containers, keep_buffered_output

_HEAD = (
    b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n"
    b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
)


def _frame(data: bytes) -> bytes:
    return struct.pack(">BxxxL", 1, len(data)) + data


class _Engine:
    """An engine that answers one request with a head and a first frame, sent at once."""

    def __init__(self, path: Path, first: bytes) -> None:
        self.more = threading.Event()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._first = first
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(_HEAD + self._first)
            if self.more.wait(20):
                connection.sendall(_frame(b"the rest\n"))

    def stop(self) -> None:
        self.more.set()
        self._thread.join(20)
        self._server.close()


@pytest.fixture
def patched() -> Iterator[None]:
    original = APIClient._get_raw_response_socket
    keep_buffered_output()
    yield
    APIClient._get_raw_response_socket = original


def _client(path: Path) -> Any:
    return docker.APIClient(base_url=f"unix://{path}", version="1.41", timeout=20)


@pytest.mark.usefixtures("patched")
def test_attach_socket_has_what_came_with_the_head(tmp_path: Path) -> None:
    engine = _Engine(tmp_path / "engine", _frame(b"early\n"))
    stream = _client(tmp_path / "engine").attach_socket("box", {"stdout": True, "stream": True})
    try:
        assert select.select([stream], [], [], 10)[0] == [stream]
        assert stream.read(3) + stream.read(100) == _frame(b"early\n")
        assert select.select([stream], [], [], 0)[0] == []
        engine.more.set()
        assert select.select([stream], [], [], 10)[0] == [stream]
        assert stream.read(100) == _frame(b"the rest\n")
        assert stream.read(100) == b""
    finally:
        stream.close()
        engine.stop()


@pytest.mark.usefixtures("patched")
def test_exec_start_has_what_came_with_the_head(tmp_path: Path) -> None:
    engine = _Engine(tmp_path / "engine", _frame(b"early\n"))
    engine.more.set()
    output = _client(tmp_path / "engine").exec_start("call")
    engine.stop()
    assert output == b"early\nthe rest\n"


@pytest.mark.usefixtures("patched")
def test_attach_socket_does_not_wait_for_output(tmp_path: Path) -> None:
    engine = _Engine(tmp_path / "engine", b"")
    stream = _client(tmp_path / "engine").attach_socket("box", {"stdout": True, "stream": True})
    assert select.select([stream], [], [], 0)[0] == []
    engine.more.set()
    assert stream.read(100) == _frame(b"the rest\n")
    stream.close()
    engine.stop()


@pytest.mark.usefixtures("patched")
def test_keep_buffered_output_changes_docker_once() -> None:
    before = APIClient._get_raw_response_socket
    keep_buffered_output()
    assert APIClient._get_raw_response_socket is before


@pytest.mark.usefixtures("patched")
def test_close_leaves_no_descriptor_open(tmp_path: Path) -> None:
    engine = _Engine(tmp_path / "engine", _frame(b"early\n"))
    stream = _client(tmp_path / "engine").attach_socket("box", {"stdout": True})
    waited_for = stream.fileno()
    assert Path(f"/proc/self/fd/{waited_for}").exists()
    stream.close()
    assert not Path(f"/proc/self/fd/{waited_for}").exists()
    engine.stop()


class _Ends(threading.Thread):
    """An engine that sends the last output of a container some time after its end."""

    def __init__(self, stream: socket.socket, delay_s: float) -> None:
        super().__init__(daemon=True)
        self._stream, self._delay_s = stream, delay_s

    def run(self) -> None:
        time.sleep(self._delay_s)
        with self._stream, contextlib.suppress(BrokenPipeError):
            self._stream.sendall(b"the last line")


@pytest.mark.parametrize(
    ("status", "expected"),
    [("exited", b"the last line"), ("dead", b"the last line"), ("running", b"")],
)
def test_output_that_comes_after_the_end_is_read(status: str, expected: bytes) -> None:
    from girder_worker.docker import utils
    from girder_worker.docker.io import FDReadStreamConnector
    from girder_worker.docker.tasks import _SocketReader

    drain_ended_containers()
    ours, theirs = socket.socketpair()
    written: list[bytes] = []
    container = SimpleNamespace(status=status)

    def exit_condition() -> bool:
        # With the state "running" it is that of a canceled task.
        return container.status in {"exited", "dead"} or status == "running"

    output = SimpleNamespace(write=written.append, open=lambda: None, close=lambda: None)
    reader = FDReadStreamConnector(_SocketReader(ours), output)
    _Ends(theirs, 0.5).start()
    began = time.monotonic()
    utils.select_loop(exit_condition=exit_condition, readers=[reader], writers=[])
    assert b"".join(written) == expected
    assert time.monotonic() - began < 20
