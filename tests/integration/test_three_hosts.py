"""A site on three hosts, made by ``girder-dask init`` and ``certs`` alone, with TLS.

The hosts are network namespaces, which root alone can make.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from distributed import Client
from distributed.security import Security

from girder_dask.jobs import JobStatus
from girder_dask.standalone import checks, ports
from girder_dask.standalone.authority import Authority
from tests.support.deployed_site import PASSWORD, Site, register, run_job
from tests.support.girder_services import wait_until
from tests.support.network_hosts import Capture, Listening, NetworkHosts, listening
from tests.support.storage import Storage

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("ip") is None,
    reason="network namespaces need root and the program ip",
)

MARK = "a-payload-that-only-two-may-read"
SCHEDULER, WORKER = 0, 1


class ThreeHosts:
    """Girder on this machine, a scheduler and a worker on two others, and all their traffic."""

    def __init__(self, site: Site, hosts: NetworkHosts, capture: Capture, client: Any) -> None:
        self.site = site
        self.hosts = hosts
        self.capture = capture
        self.client = client
        self.scheduler = f"tls://{hosts.addresses[SCHEDULER]}:8786"


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreeHosts]:
    directory = tmp_path_factory.mktemp("three")
    with (
        Storage(directory / "storage") as storage,
        NetworkHosts(2) as hosts,
        Capture(hosts.bridge) as capture,
    ):
        names = ",".join([hosts.here, *hosts.addresses])
        # Other sites of this machine may have the usual port.
        port = str(ports.choose(None, hosts.here))
        options = {"--hosts": names, "--girder-port": port}
        site = Site(directory / "site", options, storage.env())
        try:
            yield ThreeHosts(site, hosts, capture, started(site, hosts, directory))
        finally:
            site.close()


def started(site: Site, hosts: NetworkHosts, directory: Path) -> Any:
    """Start each role on its host, and return a client of the administrator."""
    (serve,) = site.shell["Girder"]
    site.start(serve, "girder", lambda: checks.girder_answers(site.api))
    client = register(site.api, directory / "assetstore")
    make_credential, scheduler = site.shell["Scheduler"]
    on_scheduler = hosts.within(SCHEDULER)
    made = site.run(make_credential, within=on_scheduler, GIRDER_PASSWORD=PASSWORD)
    assert made.returncode == 0, made.stderr
    where = (hosts.addresses[SCHEDULER], 8786)
    site.start(scheduler, "scheduler", lambda: accepts(where), within=on_scheduler)
    (worker,) = site.shell["Workers"]
    site.start(worker, "worker", lambda: True, within=hosts.within(WORKER))
    return client


def accepts(address: tuple[str, int]) -> bool:
    with socket.socket() as s:
        s.settimeout(1)
        return s.connect_ex(address) == 0


def start_with_text(text: str) -> str:
    from my_worker_tasks import my_task

    return str(my_task.delay(text).id)


def start_with_file(file_id: str) -> str:
    from girder.models.file import File
    from my_worker_tasks.files import file_facts

    from girder_dask.transforms import GirderFileId, GirderItemMetadata

    item = str(File().load(file_id, force=True)["itemId"])
    hooks = [GirderItemMetadata(item)]
    return str(file_facts.delay(GirderFileId(file_id), girder_result_hooks=hooks).id)


def security(authority: Authority, certificate: Path) -> Security:
    return Security(
        require_encryption=True,
        tls_ca_file=str(authority.certificate),
        tls_client_cert=str(certificate),
        tls_client_key=str(certificate.with_suffix(".key")),
    )


def test_three_hosts_run_jobs_and_show_nothing_in_clear(three: ThreeHosts) -> None:
    job = run_job(three.client, start_with_text, MARK)
    assert job["status"] == JobStatus.SUCCESS
    assert MARK in "".join(job["log"])
    me = three.client.get("user/me")["_id"]
    folder = next(iter(three.client.listFolder(me, parentFolderType="user", name="Private")))
    path = three.site.directory / "data.txt"
    path.write_text(MARK)
    file = three.client.uploadFileToFolder(folder["_id"], str(path))
    job = run_job(three.client, start_with_file, str(file["_id"]))
    assert job["status"] == JobStatus.SUCCESS, job["log"]
    assert three.client.getItem(file["itemId"])["meta"]["size"] == len(MARK)

    # Girder's own API is http here, which shows that the capture sees what is in clear.
    port = urlsplit(three.site.api).port
    assert port is not None
    girder = three.capture.text(port)
    tokens = set(re.findall(rb"(?i)girder-token: (\w{20,})", girder))
    assert MARK.encode() in girder
    assert tokens
    dask = three.capture.text(port, other=True)
    assert dask.count(b"\x17\x03\x03") > 5, "records of TLS"
    for secret in (MARK.encode(), *tokens, b"girder_submit", b"my_worker_tasks"):
        assert secret not in dask


def test_three_hosts_refuse_strangers(three: ThreeHosts, tmp_path: Path) -> None:
    authority = Authority(three.site.directory / "authority")
    certificate = three.site.directory / "client" / "client.pem"
    with Client(three.scheduler, security=security(authority, certificate), timeout=60) as client:
        assert client.submit(sum, [1, 2, 3]).result(timeout=30) == 6
    other = Authority(tmp_path / "other")
    other.create()
    expired = authority.issue("client", name="expired", days=-1)
    for stranger in (other.issue("client"), expired):
        with pytest.raises(OSError, match=r"Timed out|closed|certificate|alert"):
            Client(three.scheduler, security=security(authority, stranger), timeout=3)
    with pytest.raises(OSError, match=r"Timed out|closed|Invalid"):
        Client(three.scheduler.replace("tls:", "tcp:"), timeout=3, security=Security())


def test_three_hosts_listen_for_others_with_tls_alone(three: ThreeHosts) -> None:
    for role, host in (("scheduler", SCHEDULER), ("worker", WORKER)):
        found = listeners(three, role)
        outside = [listens for listens in found if not listens.is_loopback]
        for listens in outside:
            assert not answers_http(three.hosts.addresses[host], listens.port), (role, listens)


def listeners(three: ThreeHosts, role: str) -> list[Listening]:
    """Wait until a role listens for others and for its own host; return all that it listens on."""

    def found() -> list[Listening]:
        return list(listening(three.site.process(role).pid))

    wait_until(lambda: len({each.is_loopback for each in found()}) == 2, f"the {role} listens")
    return found()


def answers_http(address: str, port: int) -> bool:
    with socket.create_connection((address, port), timeout=60) as plain:
        plain.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        try:
            return plain.recv(5) == b"HTTP/"
        except ConnectionError:
            return False
