"""``girder-dask doctor`` on real processes, whole and broken."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.authority_site import Authority
from tests.support.deadline import until


def doctor(*options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run the doctor, and return its exit code and its checks by their names."""
    done = subprocess.run(
        [sys.executable, "-m", "girder_dask.cli", "doctor", "--json", *options],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout, done.stderr
    return done.returncode, {check["name"]: check for check in json.loads(done.stdout)}


def listens(port: int) -> bool:
    """Return True if a process accepts connections at a port."""
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def scheduler(tmp_path: Path, *options: str, **settings: str) -> Iterator[str]:
    """Run a Dask scheduler of its own, and give its address."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    log = tmp_path / "scheduler.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", str(port),
             "--dashboard-address", "127.0.0.1:0", *options],
            env={**os.environ, **settings},
            stdout=output,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        # Doctor waits for three seconds, and a busy machine may start it later.
        until(lambda: listens(port), 60)
        yield f"tcp://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_all_is_well(girder_stack: Any) -> None:
    def examine() -> tuple[int, dict[str, dict[str, Any]], list[Any]]:
        code, checks = doctor("--scheduler", girder_stack.scheduler, "--api-url", girder_stack.api)
        return code, checks, [check for check in checks.values() if not check["ok"]]

    code, checks, failed = examine()
    if failed:  # where one of them had to wait for some seconds
        code, checks, failed = examine()
    assert (code, failed) == (0, [])
    assert "The tasks of my_worker_tasks are on every worker" in checks


def test_a_scheduler_without_hooks(girder_stack: Any, tmp_path: Path) -> None:
    with scheduler(tmp_path) as address:
        code, checks = doctor("--scheduler", address, "--api-url", girder_stack.api)
    assert code == 1
    assert not checks["The scheduler has our hooks"]["ok"]
    assert "--preload" in checks["The scheduler has our hooks"]["remedy"]
    assert not checks["There are workers"]["ok"]
    assert checks["Girder is reachable from here"]["ok"]


def test_a_scheduler_with_a_wrong_credential(girder_stack: Any, tmp_path: Path) -> None:
    with scheduler(
        tmp_path,
        "--preload",
        "girder_dask.scheduler_hooks",
        DASK_GIRDER__API_URL=girder_stack.api,
        DASK_GIRDER__CREDENTIAL="wrong",
    ) as address:
        code, checks = doctor("--scheduler", address)
    check = checks["The scheduler's credential is valid"]
    assert code == 1
    assert not check["ok"]
    assert "Invalid API key" in check["problem"]
    assert "girder-dask credential" in check["remedy"]


def test_nothing_is_there() -> None:
    code, checks = doctor("--scheduler", "tcp://127.0.0.1:9", "--api-url", "http://127.0.0.1:9")
    assert code == 1
    assert [check["ok"] for check in checks.values()] == [False, False]


def said(*options: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the doctor as people do."""
    return subprocess.run(
        [sys.executable, "-m", "girder_dask.cli", "doctor", *options],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **env},
    )


def test_lines_for_people_say_what_does_not_work() -> None:
    done = said("--scheduler", "tcp://127.0.0.1:9", "--api-url", "http://127.0.0.1:9")
    assert done.returncode == 1
    girder, start_girder, scheduler, start_scheduler, *end = done.stdout.splitlines()
    assert girder == (
        "FAILED  Girder is not reachable from here: Girder does not answer at "
        "http://127.0.0.1:9/api/v1 ([Errno 111] Connection refused)."
    )
    assert start_girder == (
        "        → Start Girder, or give its address with --api-url http://HOST:PORT/api/v1."
    )
    assert scheduler.startswith("FAILED  The scheduler is not reachable: ")
    assert start_scheduler.startswith("        → Start 'dask scheduler', or give its address ")
    assert end == ["", "2 of 2 checks failed."]
    assert done.stderr == ""


def test_address_of_the_site_serves_as_well(girder_stack: Any) -> None:
    _, checks = doctor("--scheduler", girder_stack.scheduler, "--api-url", girder_stack.girder)
    assert checks["Girder is reachable from here"]["ok"]
    assert checks["Girder is reachable from here"]["detail"] == girder_stack.api


def test_scheduler_with_tls_is_named_without_a_traceback(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.server("localhost")
    own = str(tmp_path / "localhost.pem")
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    files = ("--tls-ca-file", str(authority.path), "--tls-cert", own, "--tls-key", own)
    with scheduler(tmp_path, "--protocol", "tls", *files) as address:
        port = address.rpartition(":")[2]
        plain = said("--scheduler", f"tcp://localhost:{port}", "--json")
        bare = said("--scheduler", f"tls://localhost:{port}", "--json")
        strange = said(
            *("--scheduler", f"tls://localhost:{port}", "--json"),
            DASK_DISTRIBUTED__COMM__TLS__CA_FILE=str(other.path),
            DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT=own,
        )
        trusted = said(
            *("--scheduler", f"tls://localhost:{port}", "--json"),
            DASK_DISTRIBUTED__COMM__TLS__CA_FILE=str(authority.path),
            DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT=own,
        )
    problems = []
    for done in (plain, bare, strange, trusted):
        assert "Traceback" not in done.stderr
        checks = {check["name"]: check for check in json.loads(done.stdout)}
        problems.append(checks["The scheduler is reachable"]["problem"])
    assert problems == [
        "it closes the connection; if it uses TLS, its address begins with tls://",
        "it uses TLS, and Dask's configuration here names no certificate",
        "its certificate is refused (certificate signature failure)",
        None,
    ]
