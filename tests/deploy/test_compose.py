"""The site of ``deploy/compose``: jobs, health, secrets, losses, stop and start."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.config
import girder_client
import pytest
import requests
from distributed import Client
from distributed.security import Security

from girder_dask import connect, task
from girder_dask.jobs import FINAL, JobStatus
from tests.support.compose_site import ComposeSite, wait_until
from tests.support.deploy_engine import DeployEngine
from tests.support.network_hosts import NetworkHosts

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

MARK = "what the job says"


def says(text: str) -> str:
    print(text)
    return text


def waits_for_second_attempt() -> int:
    from girder_dask import current_job

    request = current_job().request
    if request.attempt == 1:
        time.sleep(600)
    return request.attempt


def of_a_script(function: Callable[..., Any]) -> Any:
    """Return a task as a script has it: workers, which lack this module, get its code."""
    function.__module__ = "__main__"
    return task(function)


@pytest.fixture(scope="module")
def site(
    deploy_engine: DeployEngine,
    deploy_network: NetworkHosts,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ComposeSite]:
    directory = tmp_path_factory.mktemp("compose") / "site"
    site = ComposeSite(deploy_engine, directory, deploy_network.addresses[0])
    try:
        site.up()
        yield site
    finally:
        site.down("--volumes")


@contextlib.contextmanager
def submitting(site: ComposeSite, admin: girder_client.GirderClient) -> Iterator[None]:
    """Have ``delay()`` here submit to the site, through its proxy."""
    with (
        dask.config.set({"girder.ca-file": str(site.authority())}),
        connect(site.url, token=admin.token),
    ):
        yield


@pytest.fixture
def connected(site: ComposeSite, admin: girder_client.GirderClient) -> Iterator[None]:
    """``delay()`` here submits to the site, through its proxy."""
    with submitting(site, admin):
        yield


def test_compose_runs_a_job_through_https_below_a_prefix(
    site: ComposeSite, admin: girder_client.GirderClient, connected: None
) -> None:
    result = of_a_script(says).delay(MARK)
    assert result.get(timeout=60) == MARK
    assert MARK in "".join(admin.get(f"job/{result.id}")["log"])
    page = requests.get(f"{site.url}/", verify=site.authority(), timeout=10)
    assert 'root="/girder"' in page.text
    without_slash = requests.get(site.url, verify=site.authority(), timeout=10)
    assert without_slash.url == f"{site.url}/"
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(site.url, timeout=10)


def test_compose_stores_files_in_the_assetstore(
    site: ComposeSite, admin: girder_client.GirderClient, tmp_path: Path
) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(os.urandom(3_000_000))
    me = admin.get("user/me")["_id"]
    folder = next(iter(admin.listFolder(me, parentFolderType="user", name="Private")))
    file = admin.uploadFileToFolder(folder["_id"], str(path))
    assert b"".join(admin.downloadFileAsIterator(file["_id"])) == path.read_bytes()


def test_compose_keeps_each_secret_with_its_role(site: ComposeSite) -> None:
    credential = site.execute("scheduler", "cat", "/etc/girder_dask/scheduler/girder.credential")
    password = site.file("/etc/girder_dask/admin/administrator.json").split('"password": "')[1]
    secrets = (credential.strip(), password.split('"')[0])
    assert all(len(secret) > 8 for secret in secrets)
    for container in site.containers():
        pid = container["State"]["Pid"]
        environment = "\n".join(container["Config"]["Env"] or ())
        if pid:
            environment += Path(f"/proc/{pid}/environ").read_bytes().decode()
        assert not any(secret in environment for secret in secrets), container["Name"]
    seen = site.execute("worker", "find", "/etc/girder_dask", "-type", "f", "-readable").split()
    assert sorted(Path(path).name for path in seen if not path.endswith((".yaml", ".env"))) == [
        "accounts.conf",
        "ca.pem",
        "girder-dask-worker@.service",
        "start",
        "worker.key",
        "worker.pem",
    ]


def test_compose_runs_no_container_as_root_or_with_capabilities(site: ComposeSite) -> None:
    for container in site.containers():
        pid = container["State"]["Pid"]
        if pid:
            status = Path(f"/proc/{pid}/status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert "0" not in fields["Uid"].split(), container["Name"]
            assert int(fields["CapBnd"], 16) == 0, container["Name"]
            assert fields["NoNewPrivs"] == "1", container["Name"]
        assert container["HostConfig"]["ReadonlyRootfs"], container["Name"]


def test_compose_scheduler_accepts_its_certificates_alone(site: ComposeSite) -> None:
    files = site.client_files()
    security = Security(
        require_encryption=True,
        tls_ca_file=str(files / "ca.pem"),
        tls_client_cert=str(files / "client.pem"),
        tls_client_key=str(files / "client.key"),
    )
    address = f"tls://{site.address}:8786"
    with Client(address, security=security, timeout=20) as client:
        assert client.submit(sum, [1, 2, 3]).result(timeout=30) == 6
        workers = client.scheduler_info()["workers"]
        assert workers
        assert all(name.startswith("tls://") for name in workers)
    with pytest.raises(OSError, match=r"Timed out|closed|Invalid"):
        Client(address.replace("tls:", "tcp:"), security=Security(), timeout=3)


def test_compose_networks_keep_workers_from_the_database(site: ComposeSite) -> None:
    reaches = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"
    assert site.execute("worker", "python", "-c", reaches, "girder", "8080") == ""
    for service, port in (("mongo", "27017"), ("redis", "6379")):
        with pytest.raises(AssertionError, match=r"Name or service not known|name resolution"):
            site.execute("worker", "python", "-c", reaches, service, port)


def until_running(admin: girder_client.GirderClient, job_id: str) -> None:
    wait_until(
        lambda: admin.get(f"job/{job_id}")["status"] == JobStatus.RUNNING, "the job runs", 60
    )


def kill_worker_process(site: ComposeSite) -> None:
    """Kill the processes that run jobs. Their nannies start others."""
    running = site.processes("worker", "--multiprocessing-fork")
    assert running
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def kill_worker_container(site: ComposeSite) -> None:
    """Kill the init of the container, and so all of it. The engine starts it again."""
    (container,) = site.containers("worker")
    os.kill(container["State"]["Pid"], signal.SIGKILL)


@pytest.mark.parametrize("kill", [kill_worker_process, kill_worker_container])
def test_compose_runs_a_job_again_whose_worker_is_killed(
    site: ComposeSite,
    admin: girder_client.GirderClient,
    connected: None,
    kill: Callable[[ComposeSite], None],
) -> None:
    result = of_a_script(waits_for_second_attempt).delay()
    until_running(admin, result.id)
    kill(site)
    # More than one attempt is lost if it goes to the next process before that is killed, too.
    assert result.get(timeout=120) == admin.get(f"job/{result.id}")["dask"]["attempt"] > 1
    wait_until(lambda: not site.ailing(), "healthy again", 120)


def test_compose_renews_certificates_while_jobs_run(
    site: ComposeSite, admin: girder_client.GirderClient, connected: None
) -> None:
    before = site.file("/etc/girder_dask/worker/worker.pem")
    started = site.containers("scheduler")[0]["State"]["StartedAt"]
    site.compose("run", "--rm", "--no-deps", "-T", "setup", "sh", "/setup/setup", "renew")
    assert site.file("/etc/girder_dask/worker/worker.pem") != before
    assert of_a_script(says).delay(MARK).get(timeout=60) == MARK
    assert site.containers("scheduler")[0]["State"]["StartedAt"] == started


def ended_jobs(admin: girder_client.GirderClient) -> set[str]:
    jobs = admin.get("job/all", parameters={"limit": 0})
    return {str(job["_id"]) for job in jobs if job["status"] in FINAL}


def test_compose_starts_again_with_its_data(site: ComposeSite) -> None:
    with site.administrator() as admin:
        with submitting(site, admin):
            assert of_a_script(says).delay(MARK).get(timeout=60) == MARK
        jobs = ended_jobs(admin)
        assert jobs
    site.down()
    assert not site.containers()
    site.up()
    with site.administrator() as admin:
        assert {str(job["_id"]) for job in admin.get("job/all", parameters={"limit": 0})} == {*jobs}
        with submitting(site, admin):
            assert of_a_script(says).delay(MARK).get(timeout=60) == MARK


def test_compose_proxy_has_the_protocols_of_today(site: ComposeSite) -> None:
    context = ssl.create_default_context(cafile=str(site.authority()))
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection((site.address, 8443), timeout=5) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain, server_hostname=site.address)
