"""Private certificate authorities of Girder's https, with real certificates."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
import requests

from girder_dask import config, credential
from girder_dask.errors import GirderError
from girder_dask.http.authorities import certificate_advice, https_expiry
from girder_dask.http.girder_client import GirderClient
from girder_dask.http.probe import ApiProbe
from girder_dask.http.redirects import ASSETSTORE
from girder_dask.http.scheduler_api import SchedulerApi
from girder_dask.http.session import GirderSession, make_retrying_session
from girder_dask.protocol.names import KIND_HEADER
from tests.support.authority_site import Authority
from tests.support.local_girder import Peer, serving

SET_CA_FILE = (
    "unable to get local issuer certificate. If an authority of the site has signed it, set "
    "girder.ca-file (DASK_GIRDER__CA_FILE) here to a file with the certificate of that authority."
)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def girder(authority: Authority) -> Iterator[Peer]:
    with serving(authority.server("localhost")) as peer:
        peer.answers |= {
            "GET dask/ping": (200, {"plugin": "0.1"}),
            "POST api_key/token": (200, {"authToken": {"token": "the-token"}}),
        }
        yield peer


@contextlib.contextmanager
def trusting(path: Path) -> Iterator[None]:
    config.get("ca-file")  # registers the defaults, which the block then overrides
    with dask.config.set({"girder.ca-file": str(path)}):
        yield


def by_scheduler(url: str) -> Any:
    with contextlib.closing(SchedulerApi(url)) as api:
        return api.ping()


def by_probe(url: str) -> Any:
    with contextlib.closing(ApiProbe(10)) as probe:
        found = probe.get(url, "dask/ping")
        return found and found.document


def by_command(url: str) -> Any:
    return credential.connect(url, api_key="the-key").get("dask/ping")


CLIENTS = [by_scheduler, by_probe, by_command]


@pytest.mark.parametrize("ask", CLIENTS)
def test_clients_trust_the_authority_of_the_site(
    girder: Peer, authority: Authority, ask: Callable[[str], Any]
) -> None:
    with trusting(authority.path):
        assert ask(girder.url) == {"plugin": "0.1"}


@pytest.mark.parametrize("ask", CLIENTS)
def test_clients_say_what_to_set_for_an_unknown_authority(
    girder: Peer, ask: Callable[[str], Any]
) -> None:
    with pytest.raises(GirderError) as caught:
        ask(girder.url)
    assert (
        str(caught.value) == f"The certificate of Girder at {girder.url} is refused: {SET_CA_FILE}"
    )
    assert caught.value.status is None
    assert girder.asked == []


def test_clients_of_jobs_trust_the_authority_of_the_site(
    girder: Peer, authority: Authority
) -> None:
    with trusting(authority.path):
        client = GirderClient(girder.url, "TOKEN", make_retrying_session)
        assert client.get("dask/ping") == {"plugin": "0.1"}


def test_girder_session_prefers_the_setting_to_the_environment(
    girder: Peer, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(Authority(tmp_path / "other").path))
    with pytest.raises(requests.exceptions.SSLError):
        GirderSession(girder.url).get(f"{girder.url}/dask/ping")
    with trusting(authority.path):
        assert GirderSession(girder.url).get(f"{girder.url}/dask/ping").ok


def test_downloads_from_a_storage_server_trust_the_authority_of_the_site(
    girder: Peer, authority: Authority
) -> None:
    with serving(authority.server("localhost")) as storage:
        storage.answers["GET object"] = (200, b"content")
        girder.answers["GET file/1/download"] = (303, b"")
        girder.locations["GET file/1/download"] = f"{storage.url}/object"
        girder.more = {KIND_HEADER: ASSETSTORE}
        with trusting(authority.path):
            found = GirderSession(girder.url).get(f"{girder.url}/file/1/download")
    assert found.content == b"content"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            None,
            (
                "which cannot be read (No such file or directory). Set it to a file with the "
                "certificates of the authorities that may sign Girder's certificate."
            ),
        ),
        (
            b"0\x82\x03",
            "which holds no certificate in PEM form (-----BEGIN CERTIFICATE-----).",
        ),
    ],
)
def test_scheduler_api_says_why_the_authorities_cannot_be_read(
    girder: Peer, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with trusting(path), pytest.raises(GirderError) as caught:
        by_scheduler(girder.url)
    assert str(caught.value) == f"girder.ca-file is {path} in Dask's configuration, {problem}"
    assert girder.asked == []


def test_scheduler_api_says_that_a_certificate_is_for_another_host(authority: Authority) -> None:
    with (
        serving(authority.server("girder.example.org")) as peer,
        trusting(authority.path),
        pytest.raises(GirderError) as caught,
    ):
        by_scheduler(peer.url)
    assert str(caught.value) == (
        f"The certificate of Girder at {peer.url} is refused: Hostname mismatch, certificate is "
        "not valid for 'localhost'. Use an address that the certificate names, or have one made "
        "for this address."
    )


@pytest.mark.parametrize(
    ("code", "message", "remedy"),
    [
        (10, "certificate has expired", "Renew it on the host that serves https."),
        (9, "certificate is not yet valid", "Compare the clocks of both hosts."),
    ],
)
def test_certificate_advice_names_the_remedy(code: int, message: str, remedy: str) -> None:
    refused = ssl.SSLCertVerificationError(1, "certificate verify failed")
    refused.verify_code, refused.verify_message = code, message
    error = requests.exceptions.SSLError(refused)
    assert certificate_advice(error) == f"{message}. {remedy}"


def test_https_expiry_is_that_of_the_certificate(girder: Peer, authority: Authority) -> None:
    assert https_expiry(girder.url, timeout_s=10) is None, "its authority is not trusted"
    with trusting(authority.path):
        expires = https_expiry(girder.url, timeout_s=10)
    assert expires is not None
    assert 0.9 < (expires - time.time()) / 86400 <= 1.0
    with trusting(authority.path.with_name("missing.pem")):
        assert https_expiry(girder.url, timeout_s=10) is None


def test_https_expiry_is_unknown_without_an_answer() -> None:
    with contextlib.closing(socket.socket()) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        assert https_expiry(f"https://127.0.0.1:{port}/api/v1", timeout_s=10) is None
    assert https_expiry("https://127.0.0.1:x/api/v1", timeout_s=10) is None
