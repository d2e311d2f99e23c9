"""The end of ``docker_run``: time limits, killed processes, and what is left then."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from girder_dask.jobs import JobStatus
from tests.support.celery_site import wait_until
from tests.support.docker_engine import IMAGE
from tests.support.package_site import PackageSite

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


@pytest.mark.parametrize("script", [_OBEYS, _IGNORES], ids=["obeys", "ignores"])
@pytest.mark.usefixtures("isolation")
def test_a_time_limit_ends_the_container(package_site: PackageSite, script: str) -> None:
    job_id = package_site.docker_run(_runs(script, time_limit=3))
    package_site.wait(job_id, 60, status=JobStatus.ERROR)
    log = package_site.container_log(job_id)
    assert log.startswith("ready\n")
    assert "exceeded its time limit of 3 s" in log


@pytest.mark.usefixtures("isolation")
def test_a_soft_time_limit_ends_the_container(package_site: PackageSite) -> None:
    job_id = package_site.docker_run(_runs(_IGNORES, soft_time_limit=3))
    package_site.wait(job_id, 60, status=JobStatus.ERROR)
    log = package_site.container_log(job_id)
    assert log.startswith("ready\n")
    assert "SoftTimeLimitExceeded" in log


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
