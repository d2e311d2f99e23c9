"""girder_worker's tasks when the scheduler and the worker are killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from girder_dask.jobs import JobStatus, waits_for
from tests.support.celery_site import CelerySite, wait_until
from tests.support.fault_site import FaultStack


class Site(CelerySite, FaultStack):
    """A site with the switch, whose parts can be killed."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("celery_losses")) as site:
        yield site


def restart_cluster(site: Site, *killed: str) -> None:
    """Kill parts, end the workers with their scheduler, and start all again."""
    for name in killed:
        site.kill(name)
    site.restart(*killed)


def test_waiting_jobs_outlive_the_scheduler_and_retries_count_on(site: Site) -> None:
    retried = site.delay("tries_again", 2, 8.0)
    delayed = site.delay("add", 20, 22, countdown=8)
    wait_until(lambda: "asks to be tried again" in site.log(retried))
    assert waits_for(site.job(delayed))
    restart_cluster(site, "worker-0", "scheduler")
    site.wait(delayed, 60, status=JobStatus.SUCCESS)
    site.wait(retried, 60, status=JobStatus.SUCCESS)
    assert site.value(delayed) == 42
    assert site.value(retried) == 2
    tries = [line for line in site.log(retried).splitlines() if line.startswith("try ")]
    assert tries == ["try 0", "try 1", "try 2"]
    assert not site.documents("job", {"dask_retry": {"$exists": True}})


def test_a_lost_worker_ends_a_task_unless_it_acknowledges_late(site: Site, tmp_path: Path) -> None:
    counter = str(tmp_path / "runs")
    late, early = site.delay("at_least_once", counter), site.delay("sleeps", 60)
    for job_id in (late, early):
        site.wait(job_id, status=JobStatus.RUNNING)
    wait_until(lambda: Path(counter).exists())
    restart_cluster(site, "worker-0")
    site.wait(late, 60, status=JobStatus.SUCCESS)
    assert site.value(late) == 2
    assert site.job(late)["dask"]["attempt"] == 2
    site.wait(early, 60, status=JobStatus.ERROR)
    assert "The task may run at most once" in site.log(early)
