"""A stack whose Dask processes use TLS, with certificates of ``girder_dask.standalone`` alone."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client
from distributed.security import Security

from girder_dask.jobs import JobStatus
from girder_dask.standalone.authority import Authority, tls_environment
from girder_dask.testing.stack import TestStack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestStack]:
    with TestStack(tmp_path_factory.mktemp("tls") / "stack", workers=1, tls=True) as started:
        yield started


@pytest.fixture
def authority(stack: TestStack) -> Authority:
    return Authority(stack.directory / "tls")


def security(ca: object, certificate: object) -> Security:
    return Security(
        require_encryption=True,
        tls_ca_file=str(ca),
        tls_client_cert=str(certificate),
        tls_client_key=str(Path(str(certificate)).with_suffix(".key")),
    )


def ask(address: str, security: Security, timeout: int = 5) -> int:
    """Have the scheduler run a task, as a client would that may connect."""
    with Client(address, security=security, timeout=timeout, set_as_default=False) as client:
        return int(client.submit(sum, [1, 2, 3]).result(timeout=30))


def start_file_job(file_id: str, folder_id: str) -> str:
    from my_worker_tasks.files import make_files

    from girder_dask.transforms import GirderUploadToFolder

    hooks = [GirderUploadToFolder(folder_id)]
    return str(make_files.delay(2, girder_result_hooks=hooks).id)


def start_size_job(file_id: str) -> str:
    from my_worker_tasks.files import file_size

    from girder_dask.transforms import GirderFileId

    return str(file_size.delay(GirderFileId(file_id)).id)


def test_stack_with_tls_runs_jobs_with_files_and_outputs(stack: TestStack) -> None:
    user = stack.create_user()
    file = stack.upload(b"seven...", "data.bin", client=user.client, folder=user.folder["_id"])
    job = stack.call(start_size_job, file["_id"], user=user)
    stack.wait(job, status=JobStatus.SUCCESS)
    assert "data.bin has 8 bytes" in stack.log(job)
    job = stack.call(start_file_job, file["_id"], user.folder["_id"], user=user)
    stack.wait(job, status=JobStatus.SUCCESS)
    names = {item["name"] for item in user.client.listItem(user.folder["_id"])}
    assert {"file-0.txt", "file-1.txt"} <= names


def test_stack_with_tls_describes_what_a_client_needs(stack: TestStack) -> None:
    files = stack.describe()["tls_files"]
    assert stack.scheduler.startswith("tls://127.0.0.1:")
    assert ask(stack.scheduler, security(files["ca"], files["cert"]), timeout=60) == 6
    env = tls_environment(Path(files["ca"]), Path(files["cert"]))
    done = subprocess.run(
        [sys.executable, "-m", "girder_dask.cli", "doctor", "--api-url", stack.api, "--scheduler",
         stack.scheduler],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_stack_with_tls_refuses_other_authorities_and_expired_certificates(
    stack: TestStack, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    other.create()
    expired = authority.issue("client", name="expired", days=-1)
    for certificate in (other.issue("client"), expired):
        with pytest.raises(OSError, match=r"Timed out|certificate|alert|SSL|closed"):
            ask(stack.scheduler, security(authority.certificate, certificate))


def test_stack_with_tls_refuses_clients_without_a_certificate(
    stack: TestStack, authority: Authority
) -> None:
    with pytest.raises(OSError, match=r"Timed out|closed|Invalid|handshake"):
        ask(stack.scheduler.replace("tls://", "tcp://"), Security(require_encryption=False))
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.check_hostname = False
    host, port = stack.scheduler.removeprefix("tls://").split(":")
    with (
        pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"),
        socket.create_connection((host, int(port)), timeout=60) as plain,
        context.wrap_socket(plain) as encrypted,
    ):
        encrypted.recv(1)


def test_stack_with_tls_binds_what_asks_for_no_certificate_to_loopback(stack: TestStack) -> None:
    worker = psutil.Process(stack.part("worker-0").pid)
    ports = {
        connection.laddr
        for process in [worker, *worker.children(recursive=True)]
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {address.ip for address in ports} == {"127.0.0.1"}
    assert len(ports) == 3, "nanny, worker, HTTP server"
    assert [_answers_http(address) for address in ports].count(True) == 1


def _answers_http(address: Any) -> bool:
    with socket.create_connection(address, timeout=60) as plain:
        plain.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        try:
            return plain.recv(5) == b"HTTP/"
        except ConnectionError:
            return False
