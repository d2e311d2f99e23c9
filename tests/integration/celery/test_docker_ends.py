"""The end of ``docker_run``: time limits, killed processes, and what is left then."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from girder_dask.jobs import JobStatus
from tests.support.celery_site import wait_until
from tests.support.docker_engine import IMAGE, worker_settings
from tests.support.package_site import PackageSite

# Longer than three containers take to start on a slow machine.
LIMIT_S = 15

_OBEYS = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done"
_IGNORES = "trap '' TERM; echo ready; while :; do sleep 0.1; done"


@pytest.fixture(autouse=True)
def _nothing_is_left(package_site: PackageSite) -> Iterator[None]:
    """Check after each test that no container, volume or directory is left."""
    before = package_site.temporary_files()
    yield
    package_site.check_nothing_left(before)


@pytest.fixture(params=["thread", "process"])
def isolation(request: pytest.FixtureRequest, package_site: PackageSite) -> Iterator[str]:
    """Where the worker runs tasks."""
    if request.param == "thread":
        yield "thread"
        return
    with package_site.processes():
        yield "process"


def _runs(script: str, **limits: float) -> Any:
    """Return a function that Girder can call, for a script of the shell and limits in seconds."""

    def make() -> dict[str, Any]:
        return {"container_args": ["sh", "-c", script], **limits}

    return make


@pytest.mark.usefixtures("isolation")
def test_time_limits_end_containers(package_site: PackageSite) -> None:
    """All at once, since each lasts for the whole limit."""
    limited = [package_site.docker_run(_runs(s, time_limit=LIMIT_S)) for s in (_OBEYS, _IGNORES)]
    softly = package_site.docker_run(_runs(_IGNORES, soft_time_limit=LIMIT_S))
    for job_id in (*limited, softly):
        package_site.wait(job_id, 120, status=JobStatus.ERROR)
        log = package_site.container_log(job_id)
        assert log.startswith("ready\n")
        said = f"exceeded its time limit of {LIMIT_S} s"
        assert (said if job_id in limited else "SoftTimeLimitExceeded") in log


@pytest.mark.usefixtures("isolation")
def test_a_container_is_recorded_and_labeled_with_its_job(package_site: PackageSite) -> None:
    job_id = package_site.docker_run(_runs(_OBEYS))
    wait_until(lambda: "ready" in package_site.container_log(job_id))
    (container,) = package_site.engine.containers()
    assert container["Labels"]["girder_dask.job"] == job_id
    package_site.admin.put(f"job/{job_id}/cancel")
    job = package_site.wait(job_id, status=JobStatus.CANCELED)
    (image,) = job["dask"]["images"]
    assert image["name"] == IMAGE
    assert image["digest"].startswith("sha256:")


def test_a_killed_process_leaves_no_container(package_site: PackageSite) -> None:
    with package_site.processes():
        job_id = package_site.docker_run(_runs(_IGNORES))
        wait_until(lambda: "ready" in package_site.container_log(job_id))
        (pid,) = package_site.task_processes()
        os.kill(pid, signal.SIGKILL)
        package_site.wait(job_id, status=JobStatus.ERROR)
    assert "SIGKILL" in package_site.container_log(job_id)


def test_a_container_stays_if_the_call_says_so(package_site: PackageSite) -> None:
    def make() -> dict[str, Any]:
        return {"container_args": ["true"], "remove_container": False}

    package_site.run_container(make)
    (container,) = package_site.engine.containers()
    assert container["State"] == "exited"
    package_site.engine.request("DELETE", f"/containers/{container['Id']}?force=1&v=1")


@pytest.mark.parametrize("pull", [True, False])
def test_a_missing_image_says_what_to_do(package_site: PackageSite, pull: bool) -> None:
    def start(pull: bool) -> str:
        from girder_worker.docker.tasks import docker_run

        return str(docker_run.delay("registry.invalid/absent:1", pull_image=pull).job["_id"])

    job_id = package_site.call(start, pull)
    package_site.wait(job_id, status=JobStatus.ERROR)
    log = package_site.log(job_id)
    assert "registry.invalid/absent:1" in log or "registry.invalid" in log
    assert log.endswith("with docker pull or docker load, and the task gets pull_image=False.\n")


def test_a_missing_engine_says_what_to_do(package_site: PackageSite) -> None:
    with worker_settings(package_site, {"DOCKER_HOST": "unix:///nowhere/docker.sock"}):
        job_id = package_site.docker_run(_runs("true"))
        package_site.wait(job_id, status=JobStatus.ERROR)
    log = package_site.log(job_id)
    assert "The worker reaches no Docker engine, which this task needs" in log
    assert log.endswith("'girder-dask doctor' names them.\n")
