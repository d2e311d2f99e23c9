"""The probe for Girder's REST API, against a server that answers over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from girder_dask.errors import GirderError
from girder_dask.http.probe import ApiProbe
from tests.support.local_girder import Peer, serving


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving() as found:
        yield found


def test_api_probe_follows_redirects_and_returns_the_address(peer: Peer) -> None:
    with serving() as front:
        front.answers["GET dask/ping"] = (301, {})
        front.locations = {"GET dask/ping": f"{peer.url}/dask/ping"}
        peer.answers["GET dask/ping"] = (200, {"plugin": "1"})
        answer = ApiProbe(5).get(front.url, "dask/ping")
    assert answer is not None
    assert (answer.url, answer.document) == (peer.url, {"plugin": "1"})


def test_api_probe_finds_nothing_where_there_is_something_else(peer: Peer) -> None:
    peer.answers |= {"GET page": (200, b"<html>"), "GET list": (200, [1])}
    probe = ApiProbe(5)
    assert [probe.get(peer.url, path) for path in ("page", "list", "none")] == [None] * 3


def test_api_probe_raises_where_nothing_answers(free_port: int, peer: Peer) -> None:
    with pytest.raises(GirderError, match="does not answer"):
        ApiProbe(5).get(f"http://127.0.0.1:{free_port}", "dask/ping")
    peer.answers["GET dask/ping"] = (503, b"")
    with pytest.raises(GirderError, match="503"):
        ApiProbe(5).get(peer.url, "dask/ping")
