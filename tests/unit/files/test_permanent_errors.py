"""Errors that persist: raised at once, with the party that failed, and not retried."""

from __future__ import annotations

import pickle
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
import requests

from girder_dask import config
from girder_dask.errors import GirderError, TransformError
from girder_dask.files.downloads import download
from girder_dask.http.client import ApiClient
from girder_dask.http.girder_client import GirderClient
from girder_dask.http.redirects import LINK, StorageServerError
from girder_dask.http.request_errors import is_transient
from girder_dask.http.session import make_retrying_session
from girder_dask.protocol.messages import JobSpec
from girder_dask.protocol.payload import Call, Dependency
from girder_dask.tasks.decorator import task
from girder_dask.tasks.running_job import RunningJob
from girder_dask.transforms import GirderFileId
from girder_dask.worker.failures import failure_of
from girder_dask.worker.girder_access import child_jobs, make_running_job, open_session
from girder_dask.worker.location import WorkerLocation
from girder_dask.worker.run.input_values import resolved
from tests.support.authority_site import Authority
from tests.support.file_girder import Cut, FileGirder, serving_files
from tests.support.local_girder import serving

NOT_LONG = 60.0  # seconds, where those of a Girder that is away are 15 minutes


@pytest.fixture
def girder() -> Iterator[FileGirder]:
    config.get("worker.retry-time")
    with dask.config.set({"girder.worker.retry-time": "15 minutes"}), serving_files() as peer:
        yield peer


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < NOT_LONG


def fetch(url: str, work_dir: Path, _id: str = "id0") -> TransformError:
    transform = GirderFileId(_id, gc=GirderClient(url, "TOKEN", make_retrying_session))
    transform.work_dir = work_dir
    with pytest.raises(TransformError) as caught:
        transform.transform()
    return caught.value


def ignore(*_: Any) -> None: ...


# -- certificates --------------------------------------------------------------------------------


class Tls:
    """A server that shows a certificate, and has nothing to say."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        self._context = context
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            peer, _ = self._listener.accept()
            with peer:
                self.connections += 1
                try:
                    with self._context.wrap_socket(peer, server_side=True) as secure:
                        if secure.recv(1) == b"q":
                            return
                except OSError:
                    pass

    def close(self) -> None:
        context = ssl._create_unverified_context()  # noqa: S323
        with (
            socket.create_connection(("127.0.0.1", self.port)) as s,
            context.wrap_socket(s) as secure,
        ):
            secure.sendall(b"q")
        self._thread.join()
        self._listener.close()


@pytest.fixture
def untrusted(tmp_path: Path) -> Iterator[Tls]:
    config.get("worker.retry-time")
    server = Tls(Authority(tmp_path).server("localhost"))
    with dask.config.set({"girder.worker.retry-time": "15 minutes"}):
        yield server
    server.close()


def test_girder_file_id_raises_for_an_untrusted_certificate_at_once(
    untrusted: Tls, tmp_path: Path
) -> None:
    error = fetch(f"https://localhost:{untrusted.port}/api/v1", tmp_path)
    assert str(error) == (
        "GirderFileId('id0'): the file cannot be fetched. The certificate of Girder at "
        f"localhost:{untrusted.port} is not trusted on the worker (unable to get local issuer "
        "certificate). Ask the operator to set girder.ca-file there."
    )
    assert error.permanent
    assert untrusted.connections == 1


def test_clients_raise_for_an_untrusted_certificate_at_once(untrusted: Tls) -> None:
    url = f"https://localhost:{untrusted.port}/api/v1"
    with pytest.raises(requests.exceptions.SSLError):
        GirderClient(url, "TOKEN", make_retrying_session).get("user/me")
    with pytest.raises(GirderError, match="unable to get local issuer certificate"):
        ApiClient(url, token="TOKEN", retry_internal_errors=True, retry_time_s=900).request(
            "GET", "user/me"
        )
    assert untrusted.connections == 2


def test_girder_file_id_raises_without_tls_at_once(girder: FileGirder, tmp_path: Path) -> None:
    error = fetch(girder.url.replace("http:", "https:"), tmp_path)
    assert "offers no TLS that this worker supports" in str(error)
    assert error.permanent


@pytest.mark.parametrize(
    ("cause", "transient"),
    [
        (ssl.SSLCertVerificationError("certificate verify failed"), False),
        (ssl.SSLError("WRONG_VERSION_NUMBER"), False),
        (ssl.SSLEOFError("EOF occurred in violation of protocol"), True),
        (ssl.SSLZeroReturnError("closed"), True),
    ],
)
def test_is_transient_tells_broken_connections_from_certificates(
    cause: Exception, transient: bool
) -> None:
    from urllib3.exceptions import MaxRetryError, SSLError

    wrapped = MaxRetryError(None, "/", SSLError(cause))  # type: ignore[arg-type]
    assert is_transient(requests.exceptions.SSLError(wrapped)) is transient


# -- files ---------------------------------------------------------------------------------------


def test_girder_file_id_raises_for_a_truncated_file_at_once(
    girder: FileGirder, tmp_path: Path
) -> None:
    girder.put("a.bin", bytes(1_000_000))
    girder.cuts = [300_000, *[1_000] * 20]
    error = fetch(girder.url, tmp_path)
    assert "a.bin has 1,000,000 bytes in Girder, but every download ends early" in str(error)
    assert error.permanent
    assert girder.count("GET file/id0/download") == 5
    assert list(tmp_path.rglob("a.bin")) == []


def test_girder_file_id_asks_once_for_a_missing_file(girder: FileGirder, tmp_path: Path) -> None:
    error = fetch(girder.url, tmp_path)
    assert "There is no such file in Girder" in str(error)
    assert error.permanent
    assert girder.asked == ["GET file/id0"]


def test_girder_file_id_raises_for_lost_content_at_once(girder: FileGirder, tmp_path: Path) -> None:
    girder.put("a.bin", b"abc")
    girder.lost = True
    error = fetch(girder.url, tmp_path)
    assert "Girder knows the file, but has lost its content: File /x does not exist." in str(error)
    assert error.permanent
    assert girder.count("GET file/id0/download") == 1


def test_is_transient_gives_up_on_a_proxy_that_refuses() -> None:
    from urllib3.exceptions import MaxRetryError, ProxyError

    for said, transient in (("407 Proxy Authentication Required", False), ("503 Busy", True)):
        cause = OSError(f"Tunnel connection failed: {said}")
        wrapped = MaxRetryError(None, "/", ProxyError("Unable to connect", cause))  # type: ignore[arg-type]
        assert is_transient(requests.exceptions.ProxyError(wrapped)) is transient


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_girder_file_id_raises_refusals_as_permanent(
    girder: FileGirder, tmp_path: Path, status: int
) -> None:
    girder.fault = lambda _: status
    assert fetch(girder.url, tmp_path).permanent


def test_girder_file_id_raises_an_outage_as_not_permanent(
    girder: FileGirder, tmp_path: Path
) -> None:
    girder.fault = lambda _: 503
    with dask.config.set({"girder.worker.retry-time": "0.1 s"}):
        assert not fetch(girder.url, tmp_path).permanent


def test_girder_file_id_does_not_blame_girder_for_a_storage_server(
    girder: FileGirder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving_files() as store:
        girder.put("a.bin", b"abc")
        girder.elsewhere = store.url
        store.put("a.bin", b"abc")

        def fault(_: str) -> int | None:
            return 503 if len(store.asked) < 3 else None

        store.fault = fault
        transform = GirderFileId("id0", gc=GirderClient(girder.url, "TOKEN", make_retrying_session))
        transform.work_dir = tmp_path
        monkeypatch.setattr("girder_dask.http.retry._LOG_DELAY_S", -1.0)
        assert Path(transform.transform()).read_bytes() == b"abc"
        told = "127.0.0.1 is unavailable (Girder says that the file is at 127.0.0.1, which"
        assert f"{told} answered 503" in caplog.text
        assert "Girder is unavailable" not in caplog.text
        store.fault = lambda _: 404
        error = fetch(girder.url, tmp_path)
    assert "Girder says that the file is at 127.0.0.1, which answered 404" in str(error)
    assert "no such file" not in str(error)
    assert error.permanent


def test_girder_file_id_waits_less_for_a_link_than_for_girder(
    girder: FileGirder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("girder_dask.files.downloads._LINK_RETRY_TIME_S", 1.0)
    girder.kind = "link"
    with serving_files() as site:
        port = site.url.split(":")[2].split("/")[0]
        file = girder.put("a.bin", b"", linkUrl=f"{site.url}/raw/id0")
        del file["size"]
        girder.links["id0"] = f"{site.url}/raw/id0"
        site.put("a.bin", bytes(1000))
        site.fault = lambda _: 503
        allowed = {"girder.worker.link-hosts": [f"127.0.0.0/8:{port}"]}
        with dask.config.set(allowed):
            error = fetch(girder.url, tmp_path)
            assert "The file is a link to 127.0.0.1, which answered 503" in str(error)
            assert not error.permanent
            # One that gives a little each time would hold the thread for ever.
            site.fault, site.cuts = (lambda _: None), [500] * 1000
            error = fetch(girder.url, tmp_path)
            assert "which did not answer (ChunkedEncodingError)" in str(error)
    assert set(site.ranges) == {None}, "what is there may be another file by now"


def test_storage_server_error_names_its_host() -> None:
    response = requests.Response()
    response.status_code, response.reason = 404, "Not Found"
    error = StorageServerError("data.example.org", requests.HTTPError(response=response), LINK)
    assert str(error) == (
        "The file is a link to data.example.org, which answered 404 Not Found. Correct the link, "
        "or upload the file."
    )
    assert not is_transient(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert is_transient(StorageServerError("data.example.org", requests.ConnectionError()))


def test_download_probes_with_the_session_of_the_client(girder: FileGirder, tmp_path: Path) -> None:
    """The token goes with it, and so has to go where the client itself would send it."""
    client = GirderClient(girder.url, "TOKEN", make_retrying_session)
    client.attributes = {"params": {"site": "7"}}
    girder.fault = lambda what: None if "user/me" in what else 500
    file = girder.put("a.bin", b"abc")
    with pytest.raises(requests.HTTPError):
        download(client, file, tmp_path / "a", ignore)
    assert girder.asked.count("GET user/me") == 3
    assert set(girder.queries) == {"site=7"}


# -- what is done with such an error -------------------------------------------------------------


@pytest.mark.parametrize("permanent", [True, False])
def test_failure_of_tells_permanent_errors(permanent: bool) -> None:
    spec = JobSpec(id="5f", attempt=1, task="a:b", payload=b"", retries=2)
    error = TransformError("No such file.", permanent=permanent)
    failure = failure_of(error, spec, WorkerLocation("tcp://a", "b"), started=False, reason=None)
    assert failure.permanent is permanent
    assert ("not retried" in failure.text) is permanent
    assert failure.error == "girder_dask.errors.TransformError: No such file."


def test_resolved_raises_a_refused_input_as_permanent() -> None:
    with serving() as peer:
        peer.answers = {"GET dask/job/5f/result": (404, {"message": "gone"})}
        job = RunningJob(girder_client=GirderClient(peer.url, "TOKEN", make_retrying_session))
        with pytest.raises(TransformError, match="Input job 5f no longer exists") as caught:
            resolved(Call((Dependency("5f"),)), None, job)
    assert caught.value.permanent


# -- attributes of the session -------------------------------------------------------------------


@task
def noop() -> None: ...


def test_child_jobs_use_the_attributes_of_the_session() -> None:
    with serving() as peer:
        peer.answers = {
            "POST dask/job?site=7": (200, {"jobs": [{"_id": "5e", "status": 1}]}),
            "GET user/me?site=7": (200, {}),
        }
        spec = JobSpec(id="5f", attempt=1, task="a:b", payload=b"", token="TOKEN")
        job = make_running_job(
            spec,
            manager=None,  # type: ignore[arg-type]
            work_dir=Path,
            hostname="here",
            api_url=peer.url,
        )
        with child_jobs(peer.url, "TOKEN", None, job):
            open_session(job, {"params": {"site": "7"}, "headers": {"X-Site": "7"}})
            assert noop.delay().id == "5e"
        job.girder_client.get("user/me")
    assert peer.asked == ["POST dask/job?site=7", "GET user/me?site=7"]
    assert {headers["X-Site"] for headers in peer.headers} == {"7"}
    assert {headers["Girder-Token"] for headers in peer.headers} == {"TOKEN"}


def test_download_resumes_after_answers_without_a_byte(girder: FileGirder, tmp_path: Path) -> None:
    """Three answers without a byte may be a proxy that restarts."""
    content = bytes(range(256)) * 4096
    girder.cuts = [300_000, 0, 0, 0]
    file = girder.put("a.bin", content)
    client = GirderClient(girder.url, "TOKEN", make_retrying_session)
    download(client, file, tmp_path / "a", ignore)
    assert (tmp_path / "a").read_bytes() == content
    faults: list[Any] = [Cut(), None]

    def fault(_: str) -> int | None:
        found = faults.pop(0) if faults else None
        if found is not None:
            raise found
        return None

    girder.fault = fault
    download(client, file, tmp_path / "a", ignore)
