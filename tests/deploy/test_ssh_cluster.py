"""Dask's ``SSHCluster`` with our hooks: a scheduler and workers that a real sshd starts."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from distributed import Client

from girder_dask.jobs import JobStatus
from girder_dask.standalone import ports
from tests.support.fault_site import FaultStack, states, until

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

_SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")

PROGRAM = """
import json, sys, time
import dask
from distributed import SSHCluster

if __name__ == "__main__":
    ssh_port, key, port, directory = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    dask.config.set({"distributed.scheduler.preload": ["girder_dask.scheduler_hooks"]})
    dask.config.global_config.update(dask.config.config)
    cluster = SSHCluster(
        ["127.0.0.1", "127.0.0.1", "127.0.0.1"],
        connect_options={"port": ssh_port, "client_keys": [key], "known_hosts": None},
        scheduler_options={
            "host": "127.0.0.1", "port": port, "dashboard_address": "127.0.0.1:0",
        },
        worker_options={
            "nthreads": 1, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0",
            "local_directory": directory,
        },
        remote_python=sys.executable,
    )
    print("ready", flush=True)
    sys.stdin.readline()
    cluster.close()
"""


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """A server of SSH for this account on loopback: its port and the key that it accepts."""
    if _SSHD is None or os.getuid() != 0:
        pytest.skip("This test needs root and openssh-server. `make deploy-test` installs it.")
    # sshd refuses keys below a directory that others may write to.
    with tempfile.TemporaryDirectory(prefix="gd-ssh-", dir=Path.home()) as found:
        directory = Path(found)
        for name in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)],
                check=True,
            )
        port = ports.choose(None)
        options = {
            "Port": port,
            "ListenAddress": "127.0.0.1",
            "HostKey": directory / "host",
            "AuthorizedKeysFile": directory / "user.pub",
            "PidFile": "none",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
        }
        config = directory / "sshd_config"
        config.write_text("".join(f"{name} {value}\n" for name, value in options.items()))
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # it insists on this one
        with (directory / "log").open("w") as log:
            server = subprocess.Popen([_SSHD, "-D", "-e", "-f", str(config)], stderr=log)
        try:
            until(lambda: "listening" in (directory / "log").read_text(), 20)
            yield port, directory / "user"
        finally:
            server.terminate()
            server.wait(20)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultStack]:
    """A Girder, whose scheduler and workers are stopped."""
    env = {"DASK_GIRDER__SCHEDULER__PULL_INTERVAL": "1s"}
    directory = tmp_path_factory.mktemp("ssh") / "stack"
    with FaultStack(directory, workers=1, threads=1, env=env) as started:
        started.kill("worker-0")
        started.kill("scheduler")
        yield started


@contextlib.contextmanager
def cluster(stack: FaultStack, sshd: tuple[int, Path], directory: Path) -> Iterator[None]:
    """Start an SSHCluster at the address of the scheduler, and close it at the end."""
    program, log = directory / "cluster.py", directory / "cluster.log"
    program.write_text(PROGRAM)
    arguments = [str(sshd[0]), str(sshd[1]), stack.scheduler.rpartition(":")[2], str(directory)]
    with log.open("w") as written:
        process = subprocess.Popen(
            [sys.executable, str(program), *arguments],
            env=stack.part("scheduler").env,
            stdin=subprocess.PIPE,
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: "ready" in log.read_text() or process.poll() is not None, 120)
        assert process.poll() is None, log.read_text()
        yield
        process.communicate(b"\n", timeout=60)
        assert process.returncode == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait(20)
        _kill_remote(arguments[2])


def _kill_remote(port: str) -> None:
    """Kill what a cluster that was not closed has left: the session of its sshd has ended."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            command = process.cmdline()
            if "distributed.cli.dask_spec" in command and any(port in word for word in command):
                for each in (process, *process.children(recursive=True)):
                    each.kill()


def test_ssh_cluster_runs_the_jobs_of_girder(
    stack: FaultStack, sshd: tuple[int, Path], tmp_path: Path
) -> None:
    def credential_of_configuration() -> str | None:  # in here, so that it travels by its code
        from girder_dask import config

        found = config.get("credential")
        return None if found is None else str(found)

    waiting = stack.start_task("add_one", 1)
    with cluster(stack, sshd, tmp_path):
        (done,) = stack.wait_all([waiting])
        assert done["status"] == JobStatus.SUCCESS, stack.log(waiting)
        ids = stack.start_tasks("steady", [(5, 0.1, n) for n in range(6)])
        assert {job["status"] for job in stack.wait_all(ids)} == {JobStatus.SUCCESS}
        with Client(stack.scheduler) as client:
            workers = client.scheduler_info(n_workers=-1)["workers"]
            assert len(workers) == 2
            # The configuration travels to each process, and must hold no key.
            (credential,) = set(client.run(credential_of_configuration).values())
        assert credential is None
        running = stack.start_task("slow", 60.0, 600)
        stack.wait(running, status=JobStatus.RUNNING)
    with cluster(stack, sshd, tmp_path):
        # The job whose cluster was closed runs again.
        until(lambda: states(stack.job(running)).count("RUNNING") == 2, 60)
        stack.admin.put(f"job/{running}/cancel")
        assert stack.wait(running)["status"] == JobStatus.CANCELED
