"""girder_worker's tasks on a worker that runs each job in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from girder_dask.jobs import JobStatus
from tests.support.celery_site import CelerySite, wait_until


@pytest.fixture(scope="module", autouse=True)
def _processes(celery_site: CelerySite) -> Iterator[None]:
    with celery_site.processes():
        yield


def test_a_bound_task_has_log_progress_and_value(celery_site: CelerySite) -> None:
    job_id = celery_site.delay("fibonacci", 3)
    job = celery_site.wait(job_id, status=JobStatus.SUCCESS)
    assert job["progress"] == {"total": 3, "current": 3, "message": "at 2"}
    assert celery_site.value(job_id) == 2
    assert celery_site.log(job_id).splitlines() == [
        *("step 0: 1", "step 1: 1", "step 2: 2", "the number is 2")
    ]


def test_output_of_all_kinds_is_in_the_log_once(celery_site: CelerySite) -> None:
    job_id = celery_site.delay("speaks", "process", 5)
    celery_site.wait(job_id, status=JobStatus.SUCCESS)
    assert sorted(celery_site.log(job_id).splitlines()) == sorted(
        f"process {verb} {n}"
        for verb in ("writes", "complains", "logs", "prints")
        for n in range(5)
    )


def test_the_request_of_a_task_is_that_of_a_thread(celery_site: CelerySite) -> None:
    job_id = celery_site.delay("user_of")
    celery_site.wait(job_id, status=JobStatus.SUCCESS)
    assert celery_site.value(job_id) == {
        "user": None,  # the token of a job may not ask for that
        "reference": job_id,
        "has_token": False,
        "retries": 0,
        "same_address": True,
    }


def test_an_exception_is_the_end_of_the_log(celery_site: CelerySite) -> None:
    job_id = celery_site.delay("fails", "no more numbers")
    celery_site.wait(job_id, status=JobStatus.ERROR)
    log = celery_site.log(job_id)
    assert log.endswith("RuntimeError: no more numbers\n")
    assert "in fails\n    raise RuntimeError(message)" in log
    assert "trace_task" not in log


def test_retries_chains_and_children_go_on(celery_site: CelerySite) -> None:
    def start() -> list[str]:
        from celery import chain
        from their_tasks.tasks import add, doubles_until, starts_child

        started = [doubles_until.delay(3), starts_child.delay(4)]
        chained = chain(add.s(1, 2), add.s(10))()
        return [*(str(each.job["_id"]) for each in started), str(chained.id)]

    retried, parent, chained = celery_site.call(start)
    celery_site.wait(retried, status=JobStatus.SUCCESS)
    assert celery_site.value(retried) == 12
    celery_site.wait(parent, status=JobStatus.SUCCESS)
    (child,) = celery_site.children(parent)
    celery_site.wait(str(child["_id"]), status=JobStatus.SUCCESS)
    assert child["title"] == "The child"
    (job,) = wait_until(lambda: celery_site.documents("job", {"celeryTaskId": chained}))
    celery_site.wait(str(job["_id"]), status=JobStatus.SUCCESS)
    assert celery_site.value(str(job["_id"])) == 13


def test_limits_and_cancel_end_a_task(celery_site: CelerySite) -> None:
    limits: dict[str, Any] = {"time_limit": 2}
    limited, softly = celery_site.delay("sleeps", 60, **limits), celery_site.delay("softly_limited")
    looking, deaf = celery_site.delay("waits"), celery_site.delay("sleeps", 60)
    for job_id in (looking, deaf):
        celery_site.wait(job_id, status=JobStatus.RUNNING)
        celery_site.admin.put(f"job/{job_id}/cancel")
        celery_site.wait(job_id, status=JobStatus.CANCELED)
    assert "canceled" in celery_site.log(looking)
    celery_site.wait(limited, status=JobStatus.ERROR)
    assert "exceeded its time limit of 2 s" in celery_site.log(limited)
    celery_site.wait(softly, status=JobStatus.SUCCESS)
    assert celery_site.value(softly) == "cleaned up"


def test_modules_of_tasks_can_be_imported_in_advance(
    celery_site: CelerySite, tmp_path: Path
) -> None:
    environment = {
        "DASK_GIRDER__WORKER__ISOLATION": "process",
        "DASK_GIRDER__WORKER__PREIMPORT": "their_tasks.tasks",
    }
    with celery_site.queue_worker("ahead", tmp_path, environment) as log:
        for n in range(3):
            job_id = celery_site.delay("fibonacci", 1, queue="ahead")
            celery_site.wait(job_id, status=JobStatus.SUCCESS)
            lines = celery_site.log(job_id).splitlines()
            ran = [line for line in lines if not line.startswith("Waiting: ")]  # for the worker
            assert ran == ["step 0: 1", "the number is 1"], f"job {n}"
        assert "preimport" not in log.read_text()
