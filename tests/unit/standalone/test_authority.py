"""The authority of a site: what it issues, renews and refuses."""

from __future__ import annotations

import asyncio
import ssl
import stat
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from girder_dask.errors import GirderDaskError
from girder_dask.standalone.authority import ROLES, Authority, tls_environment
from girder_dask.utils.certificates import read_certificate


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority(tmp_path / "authority")
    authority.create(name="a site")
    return authority


def server_context(authority: Authority, certificate: Path) -> ssl.SSLContext:
    return _context(ssl.Purpose.CLIENT_AUTH, authority, certificate)


def client_context(authority: Authority, certificate: Path | None) -> ssl.SSLContext:
    context = _context(ssl.Purpose.SERVER_AUTH, authority, certificate)
    context.check_hostname = False
    return context


def _context(
    purpose: ssl.Purpose, authority: Authority, certificate: Path | None
) -> ssl.SSLContext:
    context = ssl.create_default_context(purpose, cafile=str(authority.certificate))
    context.verify_mode = ssl.CERT_REQUIRED
    if certificate is not None:
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    return context


async def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> str:
    """Return 'accepted', or the error with which one side refused the other."""
    refused: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(1))
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
            writer.write(b"x")
            await reader.readexactly(1)
            writer.close()
        except (ssl.SSLError, asyncio.IncompleteReadError, ConnectionError) as e:
            refused.append(str(e))
    return refused[0] if refused else "accepted"


async def test_authority_issues_certificates_that_both_sides_accept(authority: Authority) -> None:
    scheduler = server_context(authority, authority.issue("scheduler", ["dask.example.org"]))
    for role in ("worker", "girder", "client"):
        client = client_context(authority, authority.issue(role))
        assert await handshake(scheduler, client) == "accepted"


async def test_authority_names_no_client_that_may_listen(authority: Authority) -> None:
    worker = client_context(authority, authority.issue("worker", ["node1"]))
    for role, may_listen in ROLES.items():
        certificate = authority.issue(role, name=f"{role}-listens")
        found = await handshake(server_context(authority, certificate), worker)
        assert (found == "accepted") is may_listen, found
        assert read_certificate(certificate).is_server is may_listen


async def test_authority_refuses_strangers_and_the_expired(
    authority: Authority, tmp_path: Path
) -> None:
    scheduler = server_context(authority, authority.issue("scheduler", ["dask.example.org"]))
    other = Authority(tmp_path / "other")
    other.create(name="a site")
    stranger = other.issue("client")
    expired = authority.issue("client", days=-1)
    for certificate in (stranger, expired, None):
        refused = await handshake(scheduler, client_context(authority, certificate))
        assert refused != "accepted", certificate


def test_authority_certificates_name_their_hosts(authority: Authority) -> None:
    path = authority.issue("worker", ["node1.example.org", "192.0.2.7", "2001:db8::7"])
    assert path.name == "worker-node1.example.org.pem"
    found = read_certificate(path)
    assert found.hosts == ("node1.example.org", "192.0.2.7", "2001:db8::7")
    assert (found.name, found.issuer, found.is_authority) == (path.stem, "a site", False)
    assert read_certificate(authority.certificate).is_authority


def test_authority_certificates_satisfy_openssl(authority: Authority) -> None:
    path = authority.issue("scheduler", ["dask.example.org"])
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver"]
    command += ["-verify_hostname", "dask.example.org", "-CAfile", str(authority.certificate)]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_authority_certificates_expire_when_asked_but_not_after_it(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.create(days=20)
    soon, later = authority.issue("client", days=10), authority.issue("worker", days=400)
    assert read_certificate(soon).days_left() == pytest.approx(10, abs=0.01)
    assert read_certificate(later).days_left() == pytest.approx(20, abs=0.01)
    after = datetime.now(timezone.utc) + timedelta(days=11)
    assert read_certificate(soon).days_left(after) == pytest.approx(-1, abs=0.01)


def test_authority_keys_are_private(authority: Authority) -> None:
    path = authority.issue("client")
    authority.renew()
    for key in (authority.key, path.with_suffix(".key")):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(authority.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(authority.certificate.stat().st_mode) == 0o644


def test_authority_overwrites_nothing(authority: Authority) -> None:
    path = authority.issue("client")
    before = {p: p.read_bytes() for p in authority.directory.iterdir()}
    with pytest.raises(GirderDaskError, match="certs renew --authority"):
        authority.create()
    with pytest.raises(GirderDaskError, match=r"certs renew .* client"):
        authority.issue("client")
    with pytest.raises(GirderDaskError, match="exists"):
        authority.issue("client", name="ca")
    assert {p: p.read_bytes() for p in authority.directory.iterdir()} == before
    assert path in before


@pytest.mark.parametrize("host", ["../node1", "a/b", "", "-x", ".hidden", "a b", "x" * 300])
def test_authority_refuses_names_that_no_host_has(authority: Authority, host: str) -> None:
    before = sorted(authority.directory.parent.rglob("*"))
    with pytest.raises(GirderDaskError, match="not the name or the address of a host"):
        authority.issue("worker", [host])
    assert sorted(authority.directory.parent.rglob("*")) == before


async def test_authority_renews_with_new_keys_and_the_same_authority(authority: Authority) -> None:
    path = authority.issue("worker", ["node1"], days=1)
    client = authority.issue("client", days=1)
    old = server_context(authority, path)
    key, signed = path.with_suffix(".key").read_bytes(), authority.certificate.read_bytes()
    assert authority.renew(["worker-node1"]) == [path]
    assert path.with_suffix(".key").read_bytes() != key
    assert authority.certificate.read_bytes() == signed
    assert read_certificate(path).hosts == ("node1",)
    assert read_certificate(path).days_left() > 300
    assert read_certificate(client).days_left() < 2
    # Processes with the old certificate and with the new one understand each other.
    assert await handshake(old, client_context(authority, path)) == "accepted"
    assert authority.renew() == [client, path]
    with pytest.raises(GirderDaskError, match="no certificate worker-node2"):
        authority.renew(["worker-node2"])


async def test_authority_that_is_extended_accepts_what_it_has_issued(authority: Authority) -> None:
    path, client = authority.issue("worker", ["node1"]), authority.issue("client")
    old = server_context(authority, path)
    authority.renew_authority(days=7000)
    assert read_certificate(authority.certificate).days_left() > 6999
    assert await handshake(old, client_context(authority, client)) == "accepted"
    assert await handshake(server_context(authority, path), client_context(authority, client)) == (
        "accepted"
    )


def test_authority_that_has_expired_issues_nothing(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.create(days=-1)
    with pytest.raises(GirderDaskError, match=r"has expired\. Renew it with"):
        authority.issue("client")
    authority.renew_authority()
    assert authority.issue("client").exists()


def test_authority_is_needed_to_issue_and_to_show(tmp_path: Path) -> None:
    for use in (lambda a: a.issue("client"), lambda a: a.renew(), lambda a: list(a.certificates())):
        with pytest.raises(GirderDaskError, match="certs init"):
            use(Authority(tmp_path))


def test_read_certificate_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    with pytest.raises(GirderDaskError, match="No such file"):
        read_certificate(tmp_path / "none.pem")
    (tmp_path / "text.pem").write_text("text")
    with pytest.raises(GirderDaskError, match="holds no certificate"):
        read_certificate(tmp_path / "text.pem")


def test_tls_environment_is_what_dask_reads(authority: Authority) -> None:
    import dask.config
    from distributed.security import Security

    path = authority.issue("worker", ["node1"])
    env = tls_environment(authority.certificate, path)
    found = dask.config.collect(paths=[], env=env)
    with dask.config.set(dask.config.merge(dask.config.config, found)):
        security = Security()
        assert security.require_encryption is True
        for role in ("client", "scheduler", "worker"):
            assert security.get_connection_args(role)["ssl_context"] is not None
            assert security.get_tls_config_for_role(role)["cert"] == str(path)
