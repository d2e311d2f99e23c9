"""Link files and redirects to hosts that workers may not contact."""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dask
import girder_client
import pytest

from girder_dask import config
from girder_dask.errors import GirderDaskError, TransformError
from girder_dask.files.cache import FileCache
from girder_dask.http import links
from girder_dask.http.allowed_hosts import LinkHosts
from girder_dask.http.girder_client import GirderClient
from girder_dask.http.redirects import LinkRefused
from girder_dask.http.session import make_retrying_session
from girder_dask.jobs import JobStatus
from girder_dask.transforms import (
    GirderFileId,
    GirderFileIdAllowDirect,
    GirderItemId,
)
from tests.support.authority_site import Authority
from tests.support.file_girder import FileGirder, serving_files

PUBLIC, OTHER = "93.184.215.14", "93.184.215.15"


@pytest.fixture
def girder() -> Iterator[FileGirder]:
    config.get("worker.retry-time")
    with dask.config.set({"girder.worker.retry-time": "2 s"}), serving_files() as peer:
        peer.kind = "link"
        yield peer


@pytest.fixture
def gc(girder: FileGirder) -> Iterator[GirderClient]:
    client = GirderClient(girder.url, "TOKEN", make_retrying_session)
    yield client
    client.close()


@dataclass
class Site:
    """A foreign server, and the requests that it received."""

    port: int = 0
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    names: list[str | None] = field(default_factory=list)


@contextlib.contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            site.headers.append(dict(self.headers))
            status, headers, body = site.answers.get(self.path, (200, {}, b"content"))
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if context is not None:
        context.sni_callback = lambda _, name, __: site.names.append(name)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    site.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Internet:
    """Host names with their addresses, and the servers at these addresses."""

    names: dict[str, list[str]] = field(default_factory=dict)
    servers: dict[tuple[str, int], int] = field(default_factory=dict)
    looked_up: list[str] = field(default_factory=list)
    connected: list[tuple[str, int]] = field(default_factory=list)


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> Internet:
    """Replace name lookups, and connections to public addresses."""
    net = Internet()
    look_up, connect = socket.getaddrinfo, links.create_connection

    def getaddrinfo(host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        if host not in net.names:
            return look_up(host, port, *args, **kwargs)
        net.looked_up.append(host)
        # A name server that answers otherwise each time.
        found = net.names[host]
        address = found.pop(0) if len(found) > 1 else found[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    def create_connection(address: tuple[str, int], *args: Any, **kwargs: Any) -> socket.socket:
        net.connected.append(address)
        if address not in net.servers:
            raise ConnectionRefusedError(address)
        return connect(("127.0.0.1", net.servers[address]), *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(links, "create_connection", create_connection)
    return net


def link(girder: FileGirder, url: str, **more: Any) -> dict[str, Any]:
    file = girder.put("a.bin", b"", linkUrl=url, **more)
    del file["size"]
    girder.links[file["_id"]] = url
    return file


def fetched(gc: Any, file: dict[str, Any], tmp_path: Path, **setting: Any) -> bytes:
    transform = GirderFileId(file["_id"], gc=gc)
    transform.work_dir = tmp_path
    with dask.config.set({f"girder.worker.link-{k}": v for k, v in setting.items()}):
        return Path(transform.transform()).read_bytes()


def refusal(gc: Any, file: dict[str, Any], tmp_path: Path, **setting: Any) -> str:
    with pytest.raises(TransformError) as caught:
        fetched(gc, file, tmp_path, **setting)
    return str(caught.value)


@pytest.mark.parametrize("value", [True, 7, {"a": 1}, ["http://a"], ["a:b"], ["a:0"], ["a b"]])
def test_a_setting_that_makes_no_sense_allows_nothing(
    girder: FileGirder, gc: Any, tmp_path: Path, value: Any
) -> None:
    with pytest.raises(GirderDaskError, match="link-hosts"):
        LinkHosts.of(value)
    file = link(girder, f"http://{PUBLIC}/")
    assert "no links are followed: girder.worker.link-hosts has" in refusal(
        gc, file, tmp_path, hosts=value
    )


# -- nothing leaves ------------------------------------------------------------------------------

LOOPBACK = """
    127.0.0.1 localhost 2130706433 0x7f000001 0177.0.0.1 127.1 0x7f.1 [::1]
    [::ffff:127.0.0.1] [::ffff:7f00:1] 0.0.0.0 0 [::] ①②⑦.⓪.⓪.① localhost. 127.0.0.1.
"""


@pytest.mark.parametrize("hosts", ["public", "*.example.org", False, ["10.0.0.0/8"]])
@pytest.mark.parametrize("host", LOOPBACK.split())
def test_a_link_to_this_host_opens_no_connection(
    girder: FileGirder, gc: Any, tmp_path: Path, internet: Internet, host: str, hosts: Any
) -> None:
    family = socket.AF_INET6 if "[" in host else socket.AF_INET
    # 80 and 443 are the ports that are open to links; here is one that is to be asked for.
    with socket.create_server(("", 0), family=family, dualstack_ipv6=False) as listener:
        port = listener.getsockname()[1]
        listener.settimeout(0)
        allowed = hosts if hosts is False else [*([hosts] if isinstance(hosts, str) else hosts)]
        for url in (f"http://{host}/", f"http://{host}:{port}/x", f"https://{host}:{port}/"):
            said = refusal(gc, link(girder, url), tmp_path, hosts=allowed)
            assert "The file is a link to" in said
            assert "girder.worker.link-hosts" in said
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert internet.connected == []


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:secret@{PUBLIC}/",
        f"http://{PUBLIC}@127.0.0.1/",
        f"http://{PUBLIC}\\@127.0.0.1/",
        f"ftp://{PUBLIC}/",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "http:///etc/passwd",
        "http://[::1",
        f"http://{PUBLIC}:99999/",
        "http:",
    ],
)
def test_what_is_no_plain_address_opens_no_connection(
    girder: FileGirder, gc: Any, tmp_path: Path, internet: Internet, url: str
) -> None:
    said = refusal(gc, link(girder, url), tmp_path)
    assert "girder.worker.link-hosts" in said
    assert "secret" not in said
    assert internet.connected == []


def test_a_name_that_leads_inside_opens_no_connection(
    girder: FileGirder, gc: Any, tmp_path: Path, internet: Internet
) -> None:
    told = []
    for address in ("10.0.0.7", "169.254.169.254", "127.0.0.1"):
        internet.names["evil.example.net"] = [address]
        told.append(refusal(gc, link(girder, "http://evil.example.net/"), tmp_path))
        assert address not in told[-1]
    internet.names["evil.example.net"] = []
    assert internet.connected == []
    assert len({said.partition(":")[2] for said in told}) == 1


def test_a_host_is_looked_up_once_and_asked_there(
    girder: FileGirder, gc: Any, tmp_path: Path, internet: Internet
) -> None:
    """DNS rebinding: the second answer leads inside."""
    with serving() as site, serving() as inside:
        internet.servers = {(PUBLIC, 80): site.port, ("127.0.0.1", 80): inside.port}
        internet.names["data.example.org"] = [PUBLIC, "127.0.0.1"]
        file = link(girder, "http://data.example.org/a?b=c")
        assert fetched(gc, file, tmp_path) == b"content"
    assert internet.looked_up == ["data.example.org"]
    assert internet.connected == [(PUBLIC, 80)]
    assert (site.asked, inside.asked) == (["/a?b=c"], [])
    assert site.headers[0]["Host"] == "data.example.org"


def test_each_redirect_is_checked(
    girder: FileGirder, gc: Any, tmp_path: Path, internet: Internet
) -> None:
    with serving() as site, serving() as inside:
        internet.servers = {(PUBLIC, 80): site.port, ("127.0.0.1", inside.port): inside.port}
        internet.names["data.example.org"] = [PUBLIC]
        for target in (
            f"http://127.0.0.1:{inside.port}/",
            f"http://localhost:{inside.port}/",
            "http://127.0.0.1/",
            f"//127.0.0.1:{inside.port}/",
            f"http://u:p@{PUBLIC}/",
            girder.url,
            "file:///etc/passwd",
        ):
            site.answers["/"] = (302, {"Location": target}, b"")
            said = refusal(gc, link(girder, "http://data.example.org/"), tmp_path)
            assert "girder.worker.link-hosts" in said
        site.answers["/"] = (302, {"Location": "/there"}, b"")
        assert fetched(gc, link(girder, "http://data.example.org/"), tmp_path) == b"content"
        before = len(site.asked)
        site.answers["/"] = (302, {"Location": "/"}, b"")
        said = refusal(gc, link(girder, "http://data.example.org/"), tmp_path)
        assert "a link to data.example.org, which leads from one address to the next" in said
        assert len(site.asked) - before == 6
    assert inside.asked == []
    assert {address for address, _ in internet.connected} == {PUBLIC}


def test_nothing_of_the_job_goes_to_a_link(
    girder: FileGirder,
    tmp_path: Path,
    internet: Internet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A link gets no token, settings for Girder, credentials of a .netrc, or cookies."""
    (tmp_path / "netrc").write_text("default login operator password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    client = GirderClient(girder.url, "TOKEN", make_retrying_session)
    client.attributes = {"headers": {"X-Site": "secret"}, "auth": ("a", "secret")}
    with serving() as site:
        internet.servers = {(PUBLIC, 80): site.port}
        internet.names["data.example.org"] = [PUBLIC]
        site.answers["/"] = (302, {"Location": "/there", "Set-Cookie": "a=secret"}, b"")
        assert fetched(client, link(girder, "http://data.example.org/"), tmp_path) == b"content"
    assert len(site.headers) == 2
    for headers in site.headers:
        assert not headers.keys() & {"Girder-Token", "Authorization", "Cookie", "X-Site"}
        assert "secret" not in str(headers)
    assert set(girder.tokens) == {"TOKEN"}


def test_a_link_to_girder_is_asked_without_the_token(
    girder: FileGirder, gc: Any, tmp_path: Path
) -> None:
    """Otherwise a link could choose a request that another user's job makes."""
    port = girder.url.split(":")[2].split("/")[0]
    asked = girder.put("private.bin", b"private")["_id"]
    file = link(girder, f"{girder.url}/raw/{asked}")
    assert "girder.worker.link-hosts" in refusal(gc, file, tmp_path)
    assert girder.count(f"GET raw/{asked}") == 0
    # Also where the operator has allowed it.
    assert fetched(gc, file, tmp_path, hosts=[f"127.0.0.1:{port}"]) == b"private"
    at = girder.asked.index(f"GET raw/{asked}")
    assert girder.tokens[at] is None


def test_tls_is_of_the_name_although_the_address_is_asked(
    girder: FileGirder,
    gc: Any,
    tmp_path: Path,
    internet: Internet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.path))
    with (
        serving(authority.server("data.example.org")) as good,
        serving(authority.server("other.example.org")) as bad,
    ):
        internet.servers = {(PUBLIC, 443): good.port, (OTHER, 443): bad.port}
        internet.names["data.example.org"] = [PUBLIC, OTHER]
        file = link(girder, "https://data.example.org/a")
        assert fetched(gc, file, tmp_path) == b"content"
        assert good.names == ["data.example.org"]
        assert good.headers[0]["Host"] == "data.example.org"
        said = refusal(gc, file, tmp_path)
        assert "a link to data.example.org, which did not answer (SSLError)" in said
        assert bad.asked == []


# -- whichever way a file comes ------------------------------------------------------------------


def test_files_in_items_and_folders_are_links_too(
    girder: FileGirder, gc: Any, tmp_path: Path, internet: Internet
) -> None:
    with serving() as inside:
        link(girder, f"http://127.0.0.1:{inside.port}/", parent="5f")
        for transform in (GirderItemId("5f", gc=gc), GirderFileIdAllowDirect("id0", gc=gc)):
            transform.work_dir = tmp_path
            with pytest.raises(TransformError, match=r"girder\.worker\.link-hosts"):
                transform.transform()
        with pytest.raises(LinkRefused):
            gc.downloadFile("id0", str(tmp_path / "f"))
        with pytest.raises(LinkRefused):
            gc.downloadItem("5f", str(tmp_path), "name")
        assert inside.asked == []
    assert internet.connected == []


@pytest.mark.parametrize("kind", ["link", None, "nonsense"])
def test_a_file_that_becomes_a_link_is_one(
    girder: FileGirder, gc: Any, tmp_path: Path, kind: str | None
) -> None:
    """The document is that of a file, the redirect that of a link, and nothing is cached."""
    with serving() as inside:
        girder.put("a.bin", b"abc")
        girder.kind = kind

        def fault(what: str) -> None:
            if what.endswith("download"):
                girder.links["id0"] = f"http://127.0.0.1:{inside.port}/"
                girder.documents["id0"]["linkUrl"] = girder.links["id0"]

        girder.fault = fault
        transform = GirderFileId("id0", gc=gc)
        transform.work_dir, transform.cache = tmp_path, FileCache(tmp_path / "cache", 10**8)
        with pytest.raises(TransformError, match=r"girder\.worker\.link-hosts"):
            transform.transform()
        assert transform.cache.entries() == []
        assert inside.asked == []


def test_a_link_that_its_document_hides_is_kept_in_no_cache(
    girder: FileGirder, gc: Any, tmp_path: Path
) -> None:
    """A file is a link only while it is fetched, with content of the same size."""
    with serving() as site:
        girder.put("a.bin", b"secrets")
        girder.links["id0"] = f"http://127.0.0.1:{site.port}/"
        transform = GirderFileId("id0", gc=gc)
        transform.work_dir, transform.cache = tmp_path, FileCache(tmp_path / "cache", 10**8)
        allowed = {"girder.worker.link-hosts": [f"127.0.0.1:{site.port}"]}
        with (
            dask.config.set(allowed),
            pytest.raises(TransformError, match="is a link, but Girder does not say so"),
        ):
            transform.transform()
        assert transform.cache.entries() == []
        assert site.asked == []


def test_a_link_sends_no_more_than_is_allowed(
    girder: FileGirder, gc: Any, tmp_path: Path, internet: Internet
) -> None:
    with serving() as site:
        internet.servers = {(PUBLIC, 80): site.port}
        file = link(girder, f"http://{PUBLIC}/")
        site.answers["/"] = (200, {}, b"x" * 3000)
        said = refusal(gc, file, tmp_path, size="1 kB")
        assert "has 3,000 bytes, more than" in said
        site.answers["/"] = (200, {"Content-Length": "no"}, b"x" * 3000)
        assert "sends more bytes than workers fetch from a link" in refusal(
            gc, file, tmp_path, size="1 kB"
        )
        assert len(fetched(gc, file, tmp_path, size="3 kB")) == 3000
    assert not list(tmp_path.rglob("*.part"))


def test_a_link_that_answers_404_is_no_matter_of_girder(
    girder: FileGirder, gc: Any, tmp_path: Path, internet: Internet
) -> None:
    with serving() as site:
        internet.servers = {(PUBLIC, 80): site.port}
        site.answers["/?key=secret"] = (404, {}, b"")
        said = refusal(gc, link(girder, f"http://{PUBLIC}/?key=secret"), tmp_path)
    assert said == (
        "GirderFileId('id0'): the file cannot be fetched. The file is a link to 93.184.215.14, "
        "which answered 404 Not Found. Correct the link, or upload the file."
    )


def test_a_proxy_for_links_is_not_that_of_the_environment(
    girder: FileGirder, gc: Any, tmp_path: Path, internet: Internet
) -> None:
    with serving() as proxy:
        setting = {"proxy": f"http://127.0.0.1:{proxy.port}"}
        file = link(girder, "http://data.example.org/a")
        assert fetched(gc, file, tmp_path, **setting) == b"content"
        assert proxy.asked == ["http://data.example.org/a"]
        for host in LOOPBACK.split():
            if host[0] in "0123456789[":
                assert "link-hosts" in refusal(
                    gc, link(girder, f"http://{host}/"), tmp_path, **setting
                )
        internet.names |= {"mongodb": ["10.0.0.7"], "localhost": ["127.0.0.1"]}
        for host in ("mongodb", "localhost"):
            file = link(girder, f"http://{host}/")
            assert "link-hosts" in refusal(gc, file, tmp_path, **setting)
        proxy.answers["http://data.example.org/b"] = (302, {"Location": "http://mongodb/"}, b"")
        file = link(girder, "http://data.example.org/b")
        assert "link-hosts" in refusal(gc, file, tmp_path, **setting)
        assert proxy.asked == ["http://data.example.org/a", "http://data.example.org/b"]


def test_stand_ins_of_clients_that_are_not_ours_are_held_too(
    girder: FileGirder, tmp_path: Path, internet: Internet
) -> None:
    client = girder_client.GirderClient(apiUrl=girder.url)
    client.token = "TOKEN"
    with serving() as inside:
        file = link(girder, f"http://127.0.0.1:{inside.port}/")
        assert "girder.worker.link-hosts" in refusal(client, file, tmp_path)
        assert inside.asked == []


# -- on a real stack -----------------------------------------------------------------------------


def start(_id: str, kind: str = "GirderFileId") -> str:
    """Start a job over a file; for girder_stack.call."""
    from my_worker_tasks.files import file_size

    from girder_dask import transforms

    return str(file_size.options(retries=2).delay(getattr(transforms, kind)(_id)).id)


def test_a_link_into_the_cluster_ends_the_job(girder_stack: Any, girder_user: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        port = listener.getsockname()[1]
        urls = [f"http://127.0.0.1:{port}/", girder_stack.dashboard, f"{girder_stack.api}/user/me"]
        jobs = []
        for n, url in enumerate(urls):
            parameters = {
                "parentType": "folder",
                "parentId": girder_user.folder["_id"],
                "name": f"link {n}",
                "linkUrl": url,
            }
            item = girder_user.client.post("file", parameters=parameters)
            file = (
                item
                if "linkUrl" in item
                else girder_user.client.get(f"item/{item['_id']}/files")[0]
            )
            jobs.append(girder_stack.call(start, file["_id"], user=girder_user))
        folder = girder_user.folder["_id"]
        jobs.append(girder_stack.call(start, folder, "GirderFolderId", user=girder_user))
        for job in jobs:
            girder_stack.wait(job, status=JobStatus.ERROR)
            log = girder_stack.log(job)
            assert "The file is a link to 127.0.0.1, which workers may not contact" in log
            assert "The job is not retried" in log
            assert "Try 1 of 3" not in log
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_store_of_the_site_is_no_link(girder_stack: Any, girder_user: Any) -> None:
    """S3 on a private net: Girder redirects downloads to it, and it never sees the token."""
    file = girder_user.client.uploadStreamToFolder(
        girder_user.folder["_id"], io.BytesIO(b"content"), "a.bin", 7
    )

    def redirect(file_id: str, url: str) -> None:
        import cherrypy
        from girder.utility.filesystem_assetstore_adapter import FilesystemAssetstoreAdapter as A

        original = A.downloadFile

        def download(self: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
            if str(file["_id"]) == file_id:
                raise cherrypy.HTTPRedirect(url)
            return original(self, file, *args, **kwargs)

        A.downloadFile, A.original = download, original  # type: ignore[attr-defined]

    def restore() -> None:
        from girder.utility.filesystem_assetstore_adapter import FilesystemAssetstoreAdapter as A

        A.downloadFile = A.original  # type: ignore[attr-defined]

    with serving() as store:
        url = f"http://127.0.0.1:{store.port}/bucket/key?X-Amz-Signature=s"
        girder_stack.call(redirect, file["_id"], url)
        try:
            job = girder_stack.call(start, file["_id"], user=girder_user)
            girder_stack.wait(job, status=JobStatus.SUCCESS)
        finally:
            girder_stack.call(restore)
    assert "a.bin has 7 bytes" in girder_stack.log(job)
    assert store.asked == ["/bucket/key?X-Amz-Signature=s"]
    assert not store.headers[0].keys() & {"Girder-Token", "Authorization", "Cookie"}
