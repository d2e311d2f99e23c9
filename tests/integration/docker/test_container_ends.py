"""The end of containers whose jobs are stopped, and whose processes and workers are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from girder_dask.jobs import JobStatus
from tests.integration.docker.conftest import Containers
from tests.support.deadline import until

_SLEEPS = """
import os
from girder_dask.docker import run
print('pid', os.getpid(), flush=True)
run("busybox:latest", ["sleep", "1000"])
"""


def running(containers: Containers, count: int = 1) -> None:
    """Wait until containers run."""
    until(lambda: len(containers.engine.get("/containers/json")) == count, 60)


def test_cancel_ends_a_container_that_stops_and_one_that_does_not(containers: Containers) -> None:
    willing = containers.start(
        "trap 'echo stopping; exit 0' TERM; echo begun; while :; do sleep 0.1; done"
    )
    ignoring = containers.start("trap '' TERM; echo begun; while :; do sleep 1; done")
    for job_id in (willing, ignoring):
        until(lambda job_id=job_id: "begun" in containers.log(job_id), 60)
        containers.stack.admin.put(f"job/{job_id}/cancel")
    containers.stack.wait(willing, timeout=60, status=JobStatus.CANCELED)
    assert "stopping" in containers.log(willing)
    containers.wait(ignoring, JobStatus.CANCELED)


def test_a_time_limit_ends_a_container(docker: Containers) -> None:
    job_id = docker.start("echo begun; sleep 1000", options={"timeout": 3})
    docker.wait(job_id, JobStatus.ERROR)
    assert "exceeded its time limit of 3 s" in docker.log(job_id)


def test_a_killed_process_of_a_task_leaves_no_container(
    docker: Containers, girder_stack: Any
) -> None:
    def start(code: str) -> str:
        from my_worker_tasks import does

        return str(does.options(isolation="process").delay(code).id)

    job_id = girder_stack.call(start, _SLEEPS)
    running(docker)
    until(lambda: docker.log(job_id).endswith("\n"), 60)
    pid = int(docker.log(job_id).split()[1])
    os.kill(pid, signal.SIGKILL)
    job = docker.wait(job_id, JobStatus.ERROR)
    assert [image["name"] for image in job["dask"]["images"]] == ["busybox:latest"]


def test_a_worker_gives_limits_and_leaves_no_container_when_it_is_killed(
    docker: Containers, girder_stack: Any, tmp_path: Path
) -> None:
    worker = subprocess.Popen(
        [
            *(sys.executable, "-m", "distributed.cli.dask_worker", girder_stack.scheduler),
            *("--nworkers", "1", "--nthreads", "1", "--no-dashboard"),
            *("--resources", "engine=1 CPU=2 MEMORY=1e9 GPU=1"),
            *("--local-directory", str(tmp_path)),
        ],
        env={**os.environ, "DOCKER_HOST": docker.engine.url},
        stdout=(tmp_path / "worker.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        job_id = docker.start("true", options={"resources": {"engine": 1, "GPU": 1}})
        docker.wait(job_id, JobStatus.ERROR)
        assert "NVIDIA Container Toolkit" in docker.log(job_id)  # which Debian does not have
        resources = {"engine": 1, "CPU": 0.5, "MEMORY": 50e6}
        options = {"resources": resources, "at_most_once": True}
        job_id = docker.start("echo begun; sleep 1000", options=options)
        until(lambda: "begun" in docker.log(job_id), 60)
        (made,) = docker.engine.containers()
        limits = docker.engine.get(f"/containers/{made['Id']}/json")["HostConfig"]
        assert (limits["NanoCpus"], limits["Memory"]) == (500_000_000, 50_000_000)
        owner = made["Labels"]["girder_dask.owner"]
        pid = int(owner.split()[3])
        assert worker.pid in {parent.pid for parent in psutil.Process(pid).parents()}
        os.kill(pid, signal.SIGKILL)
        docker.stack.wait(job_id, timeout=60, status=JobStatus.ERROR)
        until(lambda: docker.engine.containers() == [], 60)
        removed = f"of job {job_id} is removed: its worker has ended"
        until(lambda: removed in (tmp_path / "worker.log").read_text())
    finally:
        worker.send_signal(signal.SIGINT)
        worker.wait(30)
