"""Sessions of tasks, whose requests wait for a Girder that is away."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import dask
import girder_client
import pytest
import requests

from girder_dask.http.session import GirderSession, make_retrying_session
from girder_dask.standalone import ports
from tests.support.file_girder import FileGirder, serving_files


@pytest.fixture
def girder() -> Iterator[FileGirder]:
    with dask.config.set({"girder.worker.retry-time": "20 s"}), serving_files() as peer:
        yield peer


@pytest.fixture
def gc(girder: FileGirder) -> Any:
    client = girder_client.GirderClient(apiUrl=girder.url)
    client._session = make_retrying_session(client.urlBase)
    return client


def test_retrying_session_repeats_get(girder: FileGirder, gc: Any) -> None:
    file = girder.put("a.bin", b"abc")
    faults: list[int] = [503, 502, 429]
    girder.fault = lambda _: faults.pop() if faults else None
    assert gc.get(f"file/{file['_id']}")["name"] == "a.bin"
    assert len(girder.asked) == 4


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_retrying_session_repeats_put_and_delete(girder: FileGirder, gc: Any, method: str) -> None:
    faults: list[int] = [500, 502]
    girder.fault = lambda _: faults.pop() if faults else 403
    with pytest.raises(requests.HTTPError, match="403"):
        gc.sendRestRequest(method, "item/a")
    assert girder.asked.count(f"{method} item/a") == 3


@pytest.mark.parametrize("status", [502, 503])
def test_retrying_session_sends_post_once(girder: FileGirder, gc: Any, status: int) -> None:
    girder.fault = lambda _: status
    with pytest.raises(requests.HTTPError):
        gc.post("file", parameters={"name": "a"})
    assert len(girder.asked) == 1


def test_retrying_session_sends_post_once_a_server_listens(girder: FileGirder) -> None:
    port = ports.choose(None)
    client = girder_client.GirderClient(apiUrl=f"http://127.0.0.1:{port}/api/v1")
    client._session = make_retrying_session(client.urlBase)

    def listen() -> None:
        time.sleep(0.5)
        with socket.create_server(("127.0.0.1", port)) as late:
            peer, _ = late.accept()
            with peer:
                assert b"POST /api/v1/item" in peer.recv(65536)
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    thread = threading.Thread(target=listen)
    thread.start()
    assert client.post("item") == {}
    thread.join()


def test_retrying_session_makes_a_request_with_a_timeout_once(girder: FileGirder, gc: Any) -> None:
    girder.fault = lambda _: 503
    with pytest.raises(requests.HTTPError):
        gc.sendRestRequest("GET", "file/a", timeout=5)
    assert len(girder.asked) == 1


def test_retrying_session_raises_refusals_at_once(girder: FileGirder, gc: Any) -> None:
    girder.fault = lambda _: 403
    with pytest.raises(requests.HTTPError):
        gc.get("file/a")
    assert len(girder.asked) == 1


def test_retrying_session_has_the_given_attributes() -> None:
    session = make_retrying_session(
        "http://girder/api/v1", {"verify": False, "headers": {"X-Site": "7"}}
    )
    assert session.verify is False
    assert session.headers == {"X-Site": "7"}


def test_girder_session_does_not_reuse_an_idle_connection(
    girder: FileGirder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with GirderSession(girder.url) as session:
        for idle, connections in ((60.0, 1), (0.0, 3)):
            monkeypatch.setattr("girder_dask.http.session.MAX_IDLE_S", idle)
            for _ in range(2):
                assert session.get(f"{girder.url}/user/me").status_code
            assert len(girder.connections) == connections


def test_retrying_session_opens_a_connection_for_each_request(girder: FileGirder, gc: Any) -> None:
    """The server closes each, and does not say so before."""
    file = girder.put("a.bin", b"abc")
    for _ in range(5):
        gc.get(f"file/{file['_id']}")
    assert len(girder.connections) == 5


def test_girder_session_closes_idle_connections_for_many_threads(
    girder: FileGirder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("girder_dask.http.session.MAX_IDLE_S", 0.0)
    statuses: list[int] = []
    with GirderSession(girder.url) as session:

        def ask() -> None:
            url = f"{girder.url}/user/me"
            statuses.extend(session.post(url).status_code for _ in range(20))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == [400] * 80
