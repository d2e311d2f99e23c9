"""``connect()``, against a server that answers as Girder does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import girder_dask
from girder_dask import GirderDaskError, NotConnectedError, connect
from girder_dask.client import connection
from girder_dask.client.backend import get_backend, has_backend, set_backend, use_backend
from girder_dask.errors import GirderError, SchedulerError
from girder_dask.standalone import ports
from tests.support.local_girder import Peer, serving
from tests.support.recording_backend import RecordingBackend

PING = "GET dask/ping"


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving() as found:
        found.answers |= {
            PING: (200, {"plugin": girder_dask.__version__}),
            "GET user/me": (200, {"_id": "u", "login": "ada"}),
            "GET system/version": (200, {"release": "5.0.21"}),
        }
        yield found


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    if connection._current is not None:
        connection._current.close()
    set_backend(None)


def root(peer: Peer) -> str:
    return peer.url.removesuffix("/api/v1")


@pytest.mark.parametrize("end", ["", "/", "/api/v1", "/api/v1/", "/#job/5f3c", "/api/v1#user"])
def test_the_address_may_be_what_a_browser_shows(peer: Peer, end: str) -> None:
    with connect(root(peer) + end, token="t") as found:
        assert found.api_url == peer.url
        assert found.user == "ada"
        assert found.is_open
        assert repr(found) == f"<Connection of ada to {peer.url}>"


def test_an_api_elsewhere_is_found(peer: Peer) -> None:
    peer.answers["GET dask/ping"] = (404, {"message": "No matching route"})
    with serving() as front:  # as behind a proxy that has Girder's API at its root
        base = root(front)
        front.url = base
        with pytest.raises(GirderError, match="There is no Girder at"):
            connect(base, token="t")


def test_a_redirect_is_followed_before_the_token_is_sent(peer: Peer) -> None:
    with serving() as front:
        front.answers[PING] = (301, {})
        front.locations = {PING: f"{peer.url}/dask/ping"}
        with connect(root(front), token="t") as found:
            assert found.api_url == peer.url
        assert not any("Girder-Token" in headers for headers in front.headers)


def test_it_is_where_jobs_go_until_it_is_closed(peer: Peer) -> None:
    found = connect(peer.url, token="t")
    assert get_backend() is found._backend
    found.close()
    found.close()
    assert not found.is_open
    assert "(closed)" in repr(found)
    with pytest.raises(NotConnectedError, match=r"girder_dask\.connect\("):
        get_backend()


def test_what_is_closed_asks_nothing_any_more(peer: Peer) -> None:
    found = connect(peer.url, token="the-secret")
    asked = len(peer.asked)
    found.close()
    with pytest.raises(NotConnectedError, match="was closed"):
        found._backend.load_job("a")
    assert len(peer.asked) == asked
    assert "the-secret" not in repr(vars(found._backend._api))


def test_a_new_connection_takes_the_place_of_the_old(peer: Peer) -> None:
    first = connect(peer.url, token="a")
    second = connect(peer.url, token="b")
    assert (first.is_open, second.is_open) == (False, True)
    first.close()
    assert get_backend() is second._backend


def test_a_failed_one_leaves_the_old(peer: Peer) -> None:
    first = connect(peer.url, token="a")
    peer.answers["GET user/me"] = (401, {"message": "no"})
    with pytest.raises(GirderError):
        connect(peer.url, token="b")
    assert first.is_open


@pytest.mark.parametrize("given", [{}, {"api_key": "k", "token": "t"}])
def test_one_credential_is_needed(peer: Peer, given: dict[str, str]) -> None:
    with pytest.raises(NotConnectedError, match="account page in Girder"):
        connect(peer.url, **given)
    assert peer.asked == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("girder.example.org", "is not the address of a Girder"),
        ("ftp://girder.example.org", "is not the address of a Girder"),
        ("", "is not the address of a Girder"),
        ("ada:pw-secret@girder.example.org", "is not the address of a Girder"),
        ("https://ada:pw-secret@girder.example.org", "contains a user, a password or a query"),
        (
            "https://girder.example.org/api/v1?token=pw-secret",
            "contains a user, a password or a query",
        ),
    ],
)
def test_an_address_is_no_more_than_that(url: str, message: str) -> None:
    with pytest.raises(GirderError, match=message) as caught:
        connect(url, token="t")
    assert "pw-secret" not in str(caught.value)


def test_a_girder_without_the_plugin(peer: Peer) -> None:
    del peer.answers[PING]
    with pytest.raises(GirderError, match="does not have the plugin dask"):
        connect(peer.url, token="t")


def test_no_girder_at_all(peer: Peer) -> None:
    peer.answers.clear()
    with pytest.raises(GirderError, match="There is no Girder at"):
        connect(peer.url, token="t")
    port = ports.choose(None)
    with pytest.raises(GirderError, match=f"does not answer at .*{port}"):
        connect(f"http://127.0.0.1:{port}", token="t")


def test_a_key_that_is_not_good(peer: Peer) -> None:
    peer.answers["POST api_key/token"] = (400, {"message": "Invalid API key."})
    with pytest.raises(GirderError, match="rejects the API key") as caught:
        connect(peer.url, api_key="pw-secret")
    assert "pw-secret" not in str(caught.value)
    assert caught.value.__suppress_context__
    with pytest.raises(NotConnectedError):
        get_backend()


def test_a_token_that_is_not_good(peer: Peer) -> None:
    peer.answers |= {"GET user/me": (200, None), "GET token/current": (200, None)}
    with pytest.raises(GirderError, match="does not know the token"):
        connect(peer.url, token="pw-secret")


def test_a_token_that_does_not_tell_the_name(peer: Peer) -> None:
    peer.answers |= {"GET user/me": (200, None), "GET token/current": (200, {"userId": "u"})}
    with connect(peer.url, token="t") as found:
        assert found.user is None
        assert repr(found) == f"<Connection of a token to {peer.url}>"


def test_another_version_is_a_warning(peer: Peer) -> None:
    peer.answers[PING] = (200, {"plugin": "0.0.1"})
    with pytest.warns(UserWarning, match=r"pip install girder_dask==0\.0\.1") as caught:
        connect(peer.url, token="t")
    assert caught[0].filename == __file__


def test_a_scheduler_is_tried_at_once(peer: Peer) -> None:
    port = ports.choose(None)
    with pytest.raises(SchedulerError, match=f"{port} does not answer"):
        connect(peer.url, token="t", scheduler=f"tcp://127.0.0.1:{port}")
    assert not has_backend()


def test_a_client_of_a_scheduler_is_used(peer: Peer) -> None:
    client: Any = object()
    with connect(peer.url, token="t", scheduler=client) as found:
        assert found.dask_client is client


def test_not_in_girder(peer: Peer) -> None:
    set_backend(RecordingBackend())
    with pytest.raises(NotConnectedError, match="This process is a Girder"):
        connect(peer.url, token="t")


def test_not_in_a_task(peer: Peer) -> None:
    with (
        use_backend(RecordingBackend()),
        pytest.raises(NotConnectedError, match="delay\\(\\) needs no connection"),
    ):
        connect(peer.url, token="t")


def test_errors_have_one_root() -> None:
    with pytest.raises(GirderDaskError):
        connect("nowhere", token="t")


def test_it_loads_no_distributed(peer: Peer) -> None:
    code = f"""
import sys, girder_dask
girder_dask.connect({peer.url!r}, token='t').close()
print('distributed' in sys.modules, 'IPython' in sys.modules, 'tqdm' in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False False False\n"
