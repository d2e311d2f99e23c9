"""Redirects that would leak a credential, or replace Girder's answer by a foreign one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import girder_client
import pytest
import requests

from girder_dask import config, credential
from girder_dask.cli.doctor import gather_facts
from girder_dask.client.connection import connect
from girder_dask.client.rest_backend import RestBackend
from girder_dask.errors import GirderError, SubmissionError, TransformError
from girder_dask.files.upload_recovery import UploadRecovery
from girder_dask.files.uploads import send_artifact
from girder_dask.http.client import ApiClient
from girder_dask.http.girder_client import GirderClient
from girder_dask.http.redirects import UnexpectedRedirect, is_within_api
from girder_dask.http.scheduler_api import SchedulerApi
from girder_dask.http.session import GirderSession, make_retrying_session
from girder_dask.protocol.messages import JobUpdate, Submission
from girder_dask.protocol.names import KIND_HEADER
from girder_dask.standalone import accounts
from girder_dask.transforms import GirderFileId, GirderUploadToFolder
from girder_dask.worker.run.fencing import record_start
from tests.support.local_girder import Peer, serving

SECRET = "the-secret"
FILE = {"_id": "1", "name": "a", "created": "2026-01-01", "size": 163}


@pytest.fixture
def other() -> Iterator[Peer]:
    """Another host, which returns the answers that the client expects."""
    with serving() as peer:
        answer = {
            "stale": [],
            "gone": [],
            "cancel": [],
            "jobs": [],
            "_id": "1",
            "name": "a",
            "admin": True,
            "specs": [],
            "authToken": {"token": SECRET},
            "state": "complete",
        }
        peer.answers = _Any(answer)
        yield peer


class _Any(dict):  # type: ignore[type-arg]
    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def get(self, *_: Any) -> Any:
        return 200, self._answer


@pytest.fixture(params=[301, 302, 303, 307, 308])
def girder(request: pytest.FixtureRequest, other: Peer) -> Iterator[Peer]:
    """A server in place of Girder that redirects all requests to the other host."""
    with serving() as peer:

        class Redirecting(dict):  # type: ignore[type-arg]
            def get(self, what: str, *_: Any) -> Any:
                method, _, path = what.partition(" ")
                assert method
                peer.locations[what] = f"{other.url}/{path}"
                return request.param, {}

        peer.answers = Redirecting()
        config.get("worker.retry-time")
        with dask.config.set({"girder.worker.retry-time": "30 s"}):
            yield peer


def _client(url: str) -> GirderClient:
    return GirderClient(url, SECRET, make_retrying_session)


def _upload(url: str) -> None:
    hook = GirderUploadToFolder("5f", gc=_client(url))
    hook.upload_recovery, hook.job = UploadRecovery("5e", 1), {"_id": "5e"}
    hook.transform(__file__)


#: Whoever asks Girder for anything, with a token, a key or a password.
CLIENTS: dict[str, Callable[[str], Any]] = {
    "scheduler, update": lambda url: _api(
        url, lambda api: api.update("s", [JobUpdate("a", 1, 1).to_wire()])
    ),
    "scheduler, claim": lambda url: _api(url, lambda api: api.claim("s", 10)),
    "scheduler, states": lambda url: _api(url, lambda api: api.states(["a"])),
    "scheduler, signing in": lambda url: SchedulerApi(url, SECRET).check_credential(),
    "notebook": lambda url: ApiClient(url, token=SECRET).request("GET", "job/1"),
    "notebook, signing in": lambda url: ApiClient(url, api_key=SECRET).request(
        "POST", "dask/job", {}
    ),
    "child": lambda url: RestBackend(url, token=SECRET, is_durable=True).submit(
        [Submission("a:b", b"j[]")]
    ),
    "log": lambda url: RestBackend(url, token=SECRET).load_log("1"),
    "credential": lambda url: credential.connect(url, api_key=SECRET),
    "password": lambda url: credential.connect(url, login="admin", password=SECRET),
    "first administrator": lambda url: accounts.ensure_administrator(
        url, {"login": "admin", "password": SECRET}
    ),
    "task, get": lambda url: _client(url).get("user/me"),
    "task, post": lambda url: _client(url).post("item", parameters={"name": "a"}),
    "task, put": lambda url: _client(url).put("item/1", data=SECRET),
    "task, delete": lambda url: _client(url).delete("item/1"),
    "task, list": lambda url: list(_client(url).listFile("5f")),
    "task, session": lambda url: _in_session(_client(url), None),
    "task, foreign session": lambda url: _in_session(_client(url), requests.Session()),
    "input": lambda url: GirderFileId("5f", gc=_client(url)).transform(),
    "input, foreign client": lambda url: GirderFileId("5f", gc=_foreign(url)).transform(),
    "output": _upload,
    "artifact": lambda url: send_artifact(_client(url), "5e", Path(__file__)),
    "record_start": lambda url: record_start(_client(url), "5e", attempt=1, run="r", worker="w"),
    "trace": lambda url: UploadRecovery("5e", 2).settle(_client(url), "u", ("folder", "5f")),
    "earlier attempts": lambda url: UploadRecovery("5e", 2).take(_client(url), "5f", "a"),
}


def _foreign(url: str) -> girder_client.GirderClient:
    client = girder_client.GirderClient(apiUrl=url)
    client.token = SECRET
    return client


def _in_session(client: GirderClient, session: requests.Session | None) -> Any:
    with client.session(session):
        return client.get("user/me")


def _api(url: str, ask: Callable[[SchedulerApi], Any]) -> Any:
    api = SchedulerApi(url, SECRET)
    api._token = SECRET
    with contextlib.closing(api):
        return ask(api)


@pytest.mark.parametrize("who", CLIENTS)
def test_no_credential_follows_a_redirect(girder: Peer, other: Peer, who: str) -> None:
    with pytest.raises(
        (GirderError, SubmissionError, UnexpectedRedirect, TransformError)
    ) as caught:
        CLIENTS[who](girder.url)
    assert other.asked == []
    said = str(caught.value)
    assert "leads to" in said
    assert other.url.removeprefix("http://").partition("/")[0] in said
    assert "girder.api-url" in said
    assert SECRET not in said
    assert len(girder.asked) == 1, "that does not become better"


def test_what_to_set_is_said(girder: Peer, other: Peer) -> None:
    with pytest.raises(GirderError) as caught:
        SchedulerApi(girder.url).version()
    assert (
        f"Use the address at which Girder itself answers: {other.url} in place of {girder.url} "
        "(girder.api-url on scheduler and workers, dask.api_url in Girder)."
    ) in str(caught.value)


def test_a_key_goes_to_no_host_that_nobody_has_named(other: Peer) -> None:
    """connect() looks for Girder first, and sends the key to where it has found it."""
    with serving() as peer:
        for path in ("dask/ping", "system/version"):
            peer.answers[f"GET {path}"] = (301, {})
            elsewhere = other.url.replace("127.0.0.1", "localhost")
            peer.locations[f"GET {path}"] = f"{elsewhere}/{path}"
        with pytest.raises(GirderError, match="leads to http://localhost"):
            connect(peer.url, api_key=SECRET)
    assert other.asked == []
    assert SECRET not in str(peer.headers)


async def _doctor(url: str) -> Any:
    return await gather_facts(url, None)


def test_doctor_says_it(girder: Peer, other: Peer) -> None:
    import asyncio

    facts = asyncio.run(_doctor(girder.url))
    assert facts.girder_answer.error is not None
    assert f"leads to {other.url}/system/version" in facts.girder_answer.error


@pytest.mark.parametrize("status", [300, 304, 305, 399])
def test_other_answers_of_300_are_no_delivery(status: int) -> None:
    with serving() as peer:
        peer.answers = {"POST dask/job/updates": (status, {"stale": [], "gone": [], "cancel": []})}
        told = f"answered {status} to POST, which Girder never does"
        with pytest.raises(GirderError, match=told):
            _api(peer.url, lambda api: api.update("s", [JobUpdate("a", 1, 1).to_wire()]))


def test_a_redirect_hides_what_signs_it(other: Peer) -> None:
    with serving() as peer:
        peer.answers = {"GET user/me": (302, {})}
        peer.locations = {"GET user/me": f"http://u:{SECRET}@example.org/login?sig={SECRET}"}
        with pytest.raises(UnexpectedRedirect) as caught:
            _client(peer.url).get("user/me")
    assert "leads to http://example.org/login. " in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("location", ["http://[::1", "", "//", "http:", "\\\\x", "ftp://x/y"])
def test_a_redirect_to_nowhere(location: str) -> None:
    with serving() as peer:
        peer.answers = {"GET user/me": (302, {})}
        peer.locations = {"GET user/me": location}
        with pytest.raises(UnexpectedRedirect):
            _client(peer.url).get("user/me")


# -- downloads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["own session", "session()", "foreign session", "iterator"])
def test_a_task_downloads_from_a_store_without_its_token(
    other: Peer, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text(f"default login operator password {SECRET}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serving() as peer:
        peer.answers = {"GET file/1": (200, FILE), "GET file/1/download": (303, {})}
        peer.locations = {"GET file/1/download": f"{other.url}/key?sig=s"}
        peer.more = {KIND_HEADER: "assetstore"}
        client = _client(peer.url)
        client.attributes = {"headers": {"X-Site": SECRET}, "auth": ("a", SECRET)}
        sessions = {"session()": None, "foreign session": requests.Session()}
        within = client.session(sessions[how]) if how in sessions else contextlib.nullcontext()
        with within:
            if how == "iterator":
                assert b"".join(client.downloadFileAsIterator("1"))
            else:
                client.downloadFile("1", str(tmp_path / "a"))
    assert other.asked == ["GET key?sig=s"]
    sent = other.headers[0]
    assert SECRET not in str(sent)
    assert not sent.keys() & {"Girder-Token", "Authorization", "X-Site", "Cookie"}
    assert peer.headers[0]["Girder-Token"] == SECRET


def test_a_store_that_leads_back_gets_no_token(tmp_path: Path) -> None:
    with serving() as peer:
        peer.answers = {
            "GET file/1": (200, FILE),
            "GET file/1/download": (303, {}),
            "GET item/1": (200, b"x" * 163),
        }
        peer.locations = {"GET file/1/download": f"{peer.url}/item/1"}
        peer.more = {KIND_HEADER: "assetstore"}
        _client(peer.url).downloadFile("1", str(tmp_path / "a"))
    assert peer.asked == ["GET file/1", "GET file/1/download", "GET item/1"]
    assert [headers.get("Girder-Token") for headers in peer.headers] == [SECRET, SECRET, None]


# -- where a token goes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "inside"),
    [
        ("http://girder:8080/api/v1/user/me", True),
        ("http://girder:8080/api/v1", True),
        ("HTTP://GIRDER:8080/api/v1/a?b", True),
        ("https://girder:8080/api/v1/user/me", False),
        ("http://girder/api/v1/user/me", False),
        ("http://girder:8081/api/v1/user/me", False),
        ("http://girder:8080/api/v10/user/me", False),
        ("http://girder:8080/other", False),
        ("http://girder:8080/api/v1/../../other", False),
        ("http://girder:8080/api/v1/%2e%2e/%2E./other", False),
        ("http://girder:8080/api/v1/..%2f..%2fother", False),
        ("http://girder:8080/api/v1/..\\..\\other", False),
        ("http://girder.evil.net:8080/api/v1/a", False),
        ("http://girder:8080@evil.net/api/v1/a", False),
        ("http://x@girder:8080/api/v1/a", False),
        ("http://girder:8080.evil.net/api/v1/a", False),
        ("http://girder:port/api/v1/a", False),
        ("/api/v1/a", False),
        ("", False),
    ],
)
def test_what_is_an_address_of_the_api(url: str, inside: bool) -> None:
    assert is_within_api(url, "http://girder:8080/api/v1/") is inside


def test_usual_ports_need_not_be_named() -> None:
    assert is_within_api("https://girder:443/api/v1/a", "https://girder/api/v1")
    assert is_within_api("http://girder/api/v1/a", "http://girder:80/api/v1")


def test_a_token_leaves_the_session_for_its_own_api_alone(other: Peer) -> None:
    with serving() as peer:
        peer.answers = {"GET a": (200, {})}
        for make in (GirderSession, make_retrying_session):
            session = make(peer.url)
            session.headers["Girder-Token"] = SECRET
            session.get(f"{other.url}/a")
            session.get(f"{peer.url}/a")
            session.get(f"{peer.url}/../../x")
    assert [headers.get("Girder-Token") for headers in other.headers] == [None, None]
    tokens = [headers.get("Girder-Token") for headers in peer.headers]
    assert tokens == [SECRET, None] * 2


def test_a_session_that_ends_leaves_the_client_as_it_was(other: Peer) -> None:
    client = _client(other.url)
    with client.session() as session:
        assert isinstance(session, GirderSession)
        client.get("user/me")
    with pytest.raises(ZeroDivisionError), client.session(requests.Session()):
        raise ZeroDivisionError
    client.get("user/me")
    assert isinstance(client._session, GirderSession)
