"""Workers in batch jobs of a real Slurm, as many as the queue needs, by ``deploy/slurm``."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from girder_dask.jobs import JobStatus
from girder_dask.standalone import checks, ports
from tests.support.deploy_files import DEPLOY
from tests.support.deployed_site import PASSWORD, Site, register, run_job
from tests.support.slurm import PROGRAMS, Slurm
from tests.support.storage import Storage

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

CLUSTER = DEPLOY / "slurm" / "cluster.py"
GRACE_S = 25
MAXIMUM = 2


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    if os.getuid() != 0:
        pytest.skip("Slurm is started as root here.")
    path = f"{os.environ['PATH']}:/usr/sbin"
    if missing := [name for name in PROGRAMS if shutil.which(name, path=path) is None]:
        pytest.skip(f"This test needs {', '.join(missing)}. `make deploy-test` installs them.")
    with (
        tempfile.TemporaryDirectory(prefix="gd-slurm-", ignore_cleanup_errors=True) as directory,
        Slurm(Path(directory)) as found,
    ):
        yield found


class BatchSite:
    """Girder, and a scheduler whose workers are batch jobs."""

    def __init__(self, site: Site, client: Any, logs: Path) -> None:
        self.site = site
        self.client = client
        #: What the batch jobs write.
        self.logs = logs


def configure(site: Site, directory: Path, port: int) -> None:
    """Adapt ``jobqueue.yaml``, as its comments say."""
    settings = yaml.safe_load((DEPLOY / "slurm" / "jobqueue.yaml").read_text())
    slurm = settings["jobqueue"]["slurm"]
    logs = directory / "logs"
    logs.mkdir()
    slurm |= {
        "cores": 2,
        "memory": "1GB",
        "walltime": "00:01:00",
        "python": sys.executable,
        "local-directory": str(site.directory.with_name("state") / "worker"),
        "log-directory": str(logs),
        "job-script-prologue": [f"export DASK_CONFIG={site.directory}/worker/dask.yaml"],
        "scheduler-options": {
            "host": "127.0.0.1",
            "port": port,
            "dashboard_address": "127.0.0.1:0",
        },
    }
    settings["girder"]["scheduler"]["leave-grace"] = f"{GRACE_S}s"
    (site.directory / "scheduler" / "jobqueue.yaml").write_text(yaml.safe_dump(settings))


@pytest.fixture(scope="module")
def batch(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatchSite]:
    directory = tmp_path_factory.mktemp("batch")
    girder = ports.choose(None)
    port = ports.choose(None, taken=[girder])
    with Storage(directory / "storage") as storage:
        options = {"--girder-port": str(girder), "--scheduler-port": str(port)}
        site = Site(directory / "site", options, storage.env())
        site.env |= slurm.env
        configure(site, directory, port)
        try:
            (serve,) = site.shell["Girder"]
            site.start(serve, "girder", lambda: checks.girder_answers(site.api))
            client = register(site.api, directory / "assetstore")
            credential, _ = site.shell["Scheduler"]
            made = site.run(credential, GIRDER_PASSWORD=PASSWORD)
            assert made.returncode == 0, made.stderr
            command = (
                f"DASK_CONFIG={site.directory}/scheduler exec {sys.executable} {CLUSTER} slurm "
                f"--minimum 0 --maximum {MAXIMUM}"
            )
            site.start(command, "scheduler", lambda: accepts(port))
            yield BatchSite(site, client, directory / "logs")
        finally:
            site.close()


def accepts(port: int) -> bool:
    with socket.socket() as s:
        s.settimeout(1)
        return s.connect_ex(("127.0.0.1", port)) == 0


def start_slow(seconds: float) -> str:
    from my_worker_tasks.endings import slow

    return str(slow.delay(seconds, 10).id)


def until(ready: Callable[[], bool], what: str, timeout: float = 90) -> None:
    deadline = time.monotonic() + timeout
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def test_slurm_runs_workers_while_jobs_wait_and_none_afterwards(
    batch: BatchSite, slurm: Slurm
) -> None:
    assert slurm.jobs() == []
    job = run_job(batch.client, start_slow, 0.1)
    assert job["status"] == JobStatus.SUCCESS
    assert 1 <= len(slurm.jobs()) <= MAXIMUM
    until(lambda: slurm.jobs() == [], "no batch job is left")


def test_slurm_loses_no_job_at_the_walltime(batch: BatchSite, slurm: Slurm) -> None:
    # The worker leaves after 18 to 30 seconds, and the walltime is 60.
    job = run_job(batch.client, start_slow, 35)
    assert job["status"] == JobStatus.SUCCESS
    assert job["dask"]["attempt"] == 1
    logs = [path.read_text() for path in batch.logs.iterdir()]
    assert any("worker-lifetime-reached" in text for text in logs), logs


def test_slurm_cluster_ends_without_the_hooks(batch: BatchSite, tmp_path: Path) -> None:
    for name in ("dask.yaml", "jobqueue.yaml"):
        shutil.copy(batch.site.directory / "scheduler" / name, tmp_path / name)
    path = tmp_path / "dask.yaml"
    text = path.read_text().replace("girder.credential", "no.credential")
    path.write_text(text)
    options = yaml.safe_load((tmp_path / "jobqueue.yaml").read_text())
    options["jobqueue"]["slurm"]["scheduler-options"]["port"] = 0
    (tmp_path / "jobqueue.yaml").write_text(yaml.safe_dump(options))
    done = batch.site.run(
        f"DASK_CONFIG={tmp_path} exec {sys.executable} {CLUSTER} slurm --maximum 1"
    )
    assert done.returncode == os.EX_CONFIG, done.stderr
    assert "no.credential" in done.stderr
