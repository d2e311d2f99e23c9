"""Options of girder_worker's tasks with which they ask to be tried again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from girder_dask.jobs import JobStatus
from tests.support.celery_site import CelerySite


def value_with(site: CelerySite, options: dict[str, Any], seconds: float = 0.0) -> Any:
    """Return what a task returns that has asked to be tried again with options."""
    job_id = site.delay("tries_with", options, seconds, user=site.create_user())
    job = site.wait(job_id, status=JobStatus.SUCCESS)
    assert job["dask"]["attempt"] == 3
    return site.value(job_id)


def test_retry_takes_the_task_to_another_queue(celery_site: CelerySite, tmp_path: Path) -> None:
    with celery_site.queue_worker("retried", tmp_path / "worker", {}):
        value = value_with(celery_site, {"queue": "retried"})
    assert (value["worker"], value["queue"]) == ("of-retried", "retried")


def test_retry_sets_a_time_limit(celery_site: CelerySite) -> None:
    job_id = celery_site.delay("tries_with", {"time_limit": 1}, 60.0)
    celery_site.wait(job_id, status=JobStatus.ERROR)
    log = celery_site.log(job_id)
    assert "third" in log
    assert "The task exceeded its time limit of 1 s." in log


def test_retry_sets_a_soft_time_limit(celery_site: CelerySite) -> None:
    assert value_with(celery_site, {"soft_time_limit": 1}, 60.0)["ended"] == "soft limit"


@pytest.mark.parametrize("options", [{"priority": 7}, {}])
def test_retry_sets_a_priority(celery_site: CelerySite, options: dict[str, Any]) -> None:
    value = value_with(celery_site, options)
    assert value["priority"] == options.get("priority", 0)
    assert value["ended"] == "slept"
