"""Options of tasks that Girder has not imported: they hold where the task runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bson import ObjectId

from girder_dask.jobs import JobStatus
from tests.support.celery_site import CelerySite

MODULE = "their_tasks.unknown_to_girder"


@pytest.fixture(params=["thread", "process"], autouse=True)
def _isolation(celery_site: CelerySite, request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "thread":
        yield
        return
    with celery_site.processes():
        yield


def start(site: CelerySite, task: str) -> str:
    """Start a task by its name alone, and return the id of its job."""
    return site.start_by_name(f"{MODULE}.{task}")


def test_the_module_is_unknown_to_girder(celery_site: CelerySite) -> None:
    def known() -> list[str]:
        from girder_worker.app import app

        return list(app.tasks)

    names = celery_site.call(known)
    assert "celery.chord" in names
    assert not [name for name in names if name.startswith(MODULE)]


def test_time_limit_of_a_task_ends_its_job(celery_site: CelerySite) -> None:
    job_id = start(celery_site, "is_limited")
    celery_site.wait(job_id, 60, status=JobStatus.ERROR)
    assert "The task exceeded its time limit of 1 s." in celery_site.log(job_id)


def test_soft_time_limit_of_a_task_is_an_exception(celery_site: CelerySite) -> None:
    job_id = start(celery_site, "is_softly_limited")
    celery_site.wait(job_id, 60, status=JobStatus.SUCCESS)
    assert celery_site.value(job_id) == "cleaned up"


def test_ignore_result_of_a_task_keeps_no_value(celery_site: CelerySite) -> None:
    job_id = start(celery_site, "returns_what_nobody_reads")
    celery_site.wait(job_id, 60, status=JobStatus.SUCCESS)
    assert celery_site.value(job_id) is None


@pytest.mark.parametrize(("task", "is_recorded"), [("may_run_once", True), ("may_repeat", False)])
def test_acks_late_of_a_task_decides_whether_its_start_is_recorded(
    celery_site: CelerySite, task: str, is_recorded: bool
) -> None:
    """No second run may begin once a start is recorded."""
    job_id = start(celery_site, task)
    celery_site.wait(job_id, 60, status=JobStatus.SUCCESS)
    (job,) = celery_site.documents("job", {"_id": ObjectId(job_id)})
    assert ("begun" in job["dask"]) is is_recorded
