"""Certificates that are replaced while a Dask process runs, and what is said of them."""

from __future__ import annotations

import asyncio
import logging
import shutil
import ssl
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, Scheduler
from distributed.security import Security

from girder_dask import tls
from girder_dask.standalone.authority import Authority
from girder_dask.tls import CertificateReloader, certificate_facts, keep_certificate
from tests.support.deadline import soon


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority(tmp_path / "authority")
    authority.create()
    authority.issue("scheduler", ["127.0.0.1"], name="server")
    return authority


def security(authority: Authority, name: str) -> Security:
    certificate = str(authority.directory / f"{name}.pem")
    key = str(authority.directory / f"{name}.key")
    roles = {f"tls_{role}_cert": certificate for role in ("client", "scheduler", "worker")}
    keys = {f"tls_{role}_key": key for role in ("client", "scheduler", "worker")}
    return Security(
        require_encryption=True, tls_ca_file=str(authority.certificate), **roles, **keys
    )


async def shown(address: str) -> str:
    """Return the certificate that a server shows."""
    host, port = address.removeprefix("tls://").split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    binary = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return ssl.DER_cert_to_PEM_cert(binary)


async def test_keep_certificate_shows_a_renewed_one_to_new_connections(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "RELOAD_INTERVAL_S", 0.02)
    file = authority.directory / "server.pem"
    with dask.config.set({"distributed.admin.system-monitor.gil.enabled": False}):
        async with (
            Scheduler(
                host="127.0.0.1",
                port=0,
                protocol="tls",
                dashboard=False,
                security=security(authority, "server"),
            ) as scheduler,
            Client(
                scheduler.address, security=security(authority, "server"), asynchronous=True
            ) as client,
        ):
            keeping = asyncio.create_task(keep_certificate(scheduler, "scheduler"))
            first = await shown(scheduler.address)
            assert first.split() == file.read_text().split()
            # What signed it and what it signs stays the same.
            authority.renew(["server"])
            assert file.read_text().split() != first.split()
            for _ in range(500):
                await asyncio.sleep(0.02)
                if (await shown(scheduler.address)).split() == file.read_text().split():
                    break
            else:
                pytest.fail("The scheduler shows the old certificate.")
            # The connection that was open goes on, and others use the new certificate.
            assert (await client.scheduler.identity())["type"] == "Scheduler"
            assert await scheduler.rpc(scheduler.address).identity()
            assert not keeping.done()
            keeping.cancel()


async def test_keep_certificate_ends_at_once_without_tls_files() -> None:
    async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
        await keep_certificate(scheduler, "scheduler")
    async with Scheduler(
        host="127.0.0.1", port=0, protocol="tls", dashboard=False, security=Security.temporary()
    ) as scheduler:
        await keep_certificate(scheduler, "scheduler")


def test_certificate_reloader_keeps_the_present_pair_while_files_are_copied(
    authority: Authority,
) -> None:
    file = authority.directory / "server.pem"
    key = file.with_suffix(".key")
    old = key.read_bytes()
    reloader = CertificateReloader(authority.certificate, file, key, [])
    reloader.step()
    authority.renew(["server"])
    new = key.read_bytes()
    key.write_bytes(old)
    for _ in range(2):
        with pytest.raises(ssl.SSLError, match="KEY_VALUES_MISMATCH"):
            reloader.step()
    key.unlink()
    with pytest.raises(OSError, match="No such file"):
        reloader.step()
    key.write_bytes(new)
    reloader.step()


async def test_keep_certificate_says_once_that_files_are_missing_and_goes_on(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "girder_dask.tls")
    monkeypatch.setattr(tls, "RELOAD_INTERVAL_S", 0.01)
    monkeypatch.setattr("girder_dask.utils.background._FIRST_DELAY_S", 0.01)
    key = authority.directory / "server.key"
    async with Scheduler(
        host="127.0.0.1",
        port=0,
        protocol="tls",
        dashboard=False,
        security=security(authority, "server"),
    ) as scheduler:
        keeping = asyncio.create_task(keep_certificate(scheduler, "scheduler"))
        await asyncio.sleep(0)
        shutil.move(key, key.with_suffix(".away"))
        await soon(lambda: "Loading the renewed certificate failed" in caplog.text)
        shutil.move(key.with_suffix(".away"), key)
        await soon(lambda: "Loading the renewed certificate works again" in caplog.text)
        assert caplog.text.count("failed and continues") == 1
        keeping.cancel()


def test_certificate_facts_name_each_file_of_the_configuration(authority: Authority) -> None:
    missing = authority.directory / "none.pem"
    found: dict[str, Any] = {
        "ca-file": str(authority.certificate),
        "scheduler": {"cert": str(authority.directory / "server.pem")},
        "worker": {"cert": str(authority.directory / "server.pem")},
        "client": {"cert": str(missing)},
    }
    with dask.config.set({"distributed.comm.tls": found}):
        ca, server, client = certificate_facts()
    assert (ca["name"], ca["error"]) == ("girder_dask", None)
    assert server["file"] == str(authority.directory / "server.pem")
    assert round(server["days_left"]) == 397
    assert (
        client["error"] == f"The certificate {missing} cannot be read: No such file or directory."
    )
