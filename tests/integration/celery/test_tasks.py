"""Tasks of girder_worker on Dask: plain and bound, logs, errors, cancels, child jobs, status."""

from __future__ import annotations

import time
from typing import Any

import pytest
from bson import ObjectId

from girder_dask.jobs import JobStatus, waits_for
from tests.support.celery_site import CelerySite
from tests.support.girder_services import wait_until


def test_a_plain_task_runs_as_a_job_of_its_user(celery_site: CelerySite) -> None:
    user = celery_site.create_user()
    job_id = celery_site.delay("add", 1, 2, user=user)
    job = celery_site.wait(job_id, status=JobStatus.SUCCESS)
    assert celery_site.value(job_id) == 3
    assert [
        str(each["_id"]) for each in celery_site.documents("job", {"userId": ObjectId(user.id)})
    ] == [job_id]
    assert job["args"] == [1, 2]
    assert job["handler"] == "dask_handler"
    assert [each["status"] for each in job["timestamps"]] == [1, 2, 3]
    assert celery_site.log(job_id) == ""


def test_a_bound_task_has_log_progress_and_the_fields_of_girder_job(
    celery_site: CelerySite,
) -> None:
    job_id = celery_site.delay("fibonacci", 5)
    job = celery_site.wait(job_id, status=JobStatus.SUCCESS)
    assert (job["title"], job["type"], job["public"]) == ("Fibonacci", "numbers", True)
    assert job["meta"] == {"of": "tests"}
    assert job["progress"] == {"total": 5, "current": 5, "message": "at 4"}
    assert celery_site.log(job_id).splitlines() == [
        *("step 0: 1", "step 1: 1", "step 2: 2", "step 3: 3", "step 4: 5"),
        "the number is 5",
    ]


def test_options_of_a_call_set_the_fields_of_its_job(celery_site: CelerySite) -> None:
    job_id = celery_site.delay(
        "add",
        2,
        3,
        girder_job_title="Two and three",
        girder_job_type="sums",
        girder_job_public=True,
        girder_job_other_fields={"meta": {"n": 5}},
        priority=3,
    )
    job = celery_site.wait(job_id, status=JobStatus.SUCCESS)
    shown = {name: job[name] for name in ("title", "type", "public", "meta")}
    assert shown == {"title": "Two and three", "type": "sums", "public": True, "meta": {"n": 5}}
    (record,) = celery_site.documents("dask_job", {"_id": ObjectId(job_id)})
    assert record["priority"] == 3


def test_the_logs_of_jobs_in_one_process_are_apart_and_whole(celery_site: CelerySite) -> None:
    names = [f"speaker-{n}" for n in range(6)]
    ids = {name: celery_site.delay("speaks", name, 20) for name in names}
    for name, job_id in ids.items():
        celery_site.wait(job_id, status=JobStatus.SUCCESS)
        lines = celery_site.log(job_id).splitlines()
        assert all(line.startswith(name) for line in lines)
        for verb in ("writes", "complains", "logs", "prints"):
            assert [line for line in lines if f" {verb} " in line] == [
                f"{name} {verb} {n}" for n in range(20)
            ]


def test_an_exception_ends_the_job_in_error_with_its_traceback(celery_site: CelerySite) -> None:
    job_id = celery_site.delay("fails", "no more numbers")
    celery_site.wait(job_id, status=JobStatus.ERROR)
    log = celery_site.log(job_id)
    assert log.endswith("RuntimeError: no more numbers\n")
    assert "in fails\n    raise RuntimeError(message)" in log
    assert "trace_task" not in log
    assert "girder_worker" not in log


def test_a_transform_gets_the_client_of_the_job(celery_site: CelerySite) -> None:
    user = celery_site.create_user()
    file = celery_site.upload(b"n" * 17, client=user.client)

    def start(file_id: str) -> str:
        from girder_worker.utils.transforms.girder_io import GirderFileId
        from their_tasks.tasks import size

        return str(size.delay(GirderFileId(file_id)).job["_id"])

    job_id = celery_site.call(start, file["_id"], user=user)
    celery_site.wait(job_id, status=JobStatus.SUCCESS)
    assert celery_site.value(job_id) == 17


def test_the_request_of_a_task_names_its_job_and_holds_no_token(celery_site: CelerySite) -> None:
    job_id = celery_site.delay("user_of")
    celery_site.wait(job_id, status=JobStatus.SUCCESS)
    value = celery_site.value(job_id)
    assert value["reference"] == job_id
    assert value["has_token"] is False
    assert value["same_address"] is True


def test_send_task_by_name_starts_a_job(celery_site: CelerySite) -> None:
    def start() -> Any:
        from girder_worker.app import app

        return app.send_task("their_tasks.tasks.add", (20, 22)).id

    job_id = _job_of(celery_site, celery_site.call(start))
    celery_site.wait(job_id, status=JobStatus.SUCCESS)
    assert celery_site.value(job_id) == 42


def _job_of(site: CelerySite, task_id: str) -> str:
    (job,) = site.documents("job", {"celeryTaskId": task_id})
    return str(job["_id"])


def test_a_scheduled_worker_handler_job_is_adopted(celery_site: CelerySite) -> None:
    def start() -> Any:
        from girder.api.rest import getCurrentUser
        from girder_jobs.models.job import Job

        job = Job().createJob(
            title="Scheduled",
            type="scheduled",
            handler="worker_handler",
            user=getCurrentUser(),
            args=(3, 4),
            otherFields={"celeryTaskName": "their_tasks.tasks.add"},
        )
        Job().scheduleJob(job)
        return str(job["_id"])

    job_id = celery_site.call(start)
    job = celery_site.wait(job_id, status=JobStatus.SUCCESS)
    assert celery_site.value(job_id) == 7
    assert job["handler"] == "dask_handler"
    assert job["celeryTaskId"]


def test_cancel_ends_a_running_task_that_looks(celery_site: CelerySite) -> None:
    job_id = celery_site.delay("waits")
    celery_site.wait(job_id, status=JobStatus.RUNNING)
    celery_site.admin.put(f"job/{job_id}/cancel")
    celery_site.wait(job_id, status=JobStatus.CANCELED)
    assert celery_site.log(job_id) == "waiting\ncanceled\nThe job was canceled.\n"


def test_revoke_ends_a_running_and_a_delayed_task(celery_site: CelerySite) -> None:
    def start_and_revoke() -> list[str]:
        from their_tasks.tasks import waits

        results = [waits.delay(), waits.apply_async(countdown=60)]
        for result in results:
            result.revoke()
        return [str(result.job["_id"]) for result in results]

    for job_id in celery_site.call(start_and_revoke):
        celery_site.wait(job_id, status=JobStatus.CANCELED)


def test_a_task_starts_a_child_with_its_own_title_and_parent(celery_site: CelerySite) -> None:
    user = celery_site.create_user()
    job_id = celery_site.delay("starts_child", 4, user=user)
    celery_site.wait(job_id, status=JobStatus.SUCCESS)
    (child,) = celery_site.children(job_id)
    celery_site.wait(str(child["_id"]), status=JobStatus.SUCCESS)
    assert (child["title"], child["type"]) == ("The child", "children")
    assert (str(child["parentId"]), str(child["userId"])) == (job_id, user.id)
    assert celery_site.value(str(child["_id"])) == 3


@pytest.mark.parametrize(("name", "values"), [("starts_by_name", [3]), ("starts_group", [0, 2, 4])])
def test_a_task_starts_others(celery_site: CelerySite, name: str, values: list[int]) -> None:
    job_id = celery_site.delay(name, user=celery_site.create_user())
    celery_site.wait(job_id, status=JobStatus.SUCCESS)
    children = celery_site.children(job_id)
    for child in children:
        celery_site.wait(str(child["_id"]), status=JobStatus.SUCCESS)
    assert sorted(celery_site.value(str(child["_id"])) for child in children) == values


def test_countdown_leaves_the_job_queued_with_the_time(celery_site: CelerySite) -> None:
    began = time.time()
    job_id = celery_site.delay("add", 1, 1, countdown=5)
    job = celery_site.job(job_id)
    assert job["status"] == JobStatus.QUEUED
    assert waits_for(job).startswith("it is to start at ")
    assert waits_for(job).endswith(" UTC")
    celery_site.wait(job_id, status=JobStatus.SUCCESS)
    assert time.time() - began >= 5


def test_worker_status_shows_what_runs(celery_site: CelerySite) -> None:
    job_id = celery_site.delay("waits")
    celery_site.wait(job_id, status=JobStatus.RUNNING)
    seen: list[Any] = []

    def shows_job() -> bool:
        # What the scheduler said a moment ago is answered again.
        seen.append(celery_site.admin.get("worker/status"))
        active = (seen[-1]["active"] or {}).get("dask@worker-0", ())
        return bool(seen[-1]["ping"]) and job_id in [task["id"] for task in active]

    wait_until(shows_job, "the job is shown")
    celery_site.admin.put(f"job/{job_id}/cancel")
    assert seen[-1]["ping"]["dask@worker-0"] == {"ok": "pong"}
    assert seen[-1]["stats"]["dask@worker-0"]["pool"] == {"max-concurrency": 4}


def test_local_worker_check_is_never_answered_with_no(celery_site: CelerySite) -> None:
    def is_available() -> Any:
        from girder.tasks import is_local_worker_available

        return is_local_worker_available()

    assert celery_site.call(is_available) is True


def test_an_unknown_task_names_the_package_to_install(celery_site: CelerySite) -> None:
    def start() -> str:
        from girder_worker.app import app

        return str(app.send_task("their_tasks.tasks.missing").id)

    job_id = _job_of(celery_site, celery_site.call(start))
    celery_site.wait(job_id, status=JobStatus.ERROR)
    log = celery_site.log(job_id)
    assert "registers a task 'their_tasks.tasks.missing'" in log
    assert "pip install 'their_tasks==1.0.0'" in log
