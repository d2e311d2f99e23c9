"""What the example package does inside Girder with calls, results, transforms and jobs.

``test_side_by_side.py`` takes the package's own starts on girder_worker too. Here are the
names of girder_worker's interface that those starts do not use, row by row.
"""

from __future__ import annotations

from typing import Any

import pytest

from girder_dask.jobs import JobStatus


def test_the_options_of_a_call(girder_stack, girder_user):
    def start(url: str) -> dict[str, Any]:
        from girder.api.rest import getCurrentUser
        from girder.models.token import Token
        from girder.models.user import User
        from ported_tasks import tasks

        user = getCurrentUser()
        other = User().findOne({"admin": True})
        job = tasks.surroundings.delay(
            girder_user=user,
            girder_job_title="All options",
            girder_job_type="rows",
            girder_job_public=True,
            girder_job_handler="another_handler",
            girder_job_other_fields={"rows": 7},
            girder_client_token=Token().createToken(user=user, days=1),
            girder_client_session_kwargs={"verify": False},
            girder_api_url=url,
        ).job
        theirs = tasks.add.delay(1, 2, girder_user=other).job
        assert theirs["userId"] == other["_id"]
        assert tasks.add.delay(5, 6, girder_job_disable=True).get(timeout=30) == 11
        assert job["userId"] == user["_id"]
        return {"id": str(job["_id"])}

    started = girder_stack.call(start, girder_stack.api, user=girder_user)
    job = girder_stack.wait(started["id"])
    assert job["status"] == JobStatus.SUCCESS, girder_stack.log(started["id"])
    shown = {k: job[k] for k in ("title", "type", "public", "handler")}
    assert shown == {
        "title": "All options",
        "type": "rows",
        "public": True,
        "handler": "another_handler",
    }
    lines = girder_stack.log(started["id"]).splitlines()
    assert lines == ["True", "True 0 False"]


def test_results_and_signatures(girder_stack, girder_user):
    def start() -> dict[str, Any]:
        from ported_tasks import tasks

        from girder_dask import chain, chord, group

        result = tasks.add.delay(1, 2)
        seen = {"value": result.get(timeout=30), "same": result.task_id == result.id}
        seen |= {"ready": result.ready(), "successful": result.successful()}
        seen |= {"failed": result.failed(), "state": result.state, "job": result.job["title"]}
        waiting = tasks.waits.delay()
        waiting.revoke()
        seen["revoked"] = waiting.wait(timeout=30).state
        signature = tasks.add.signature((1, 1))
        seen["signature"] = signature.delay().get(timeout=30)
        seen["chain"] = chain(tasks.add.s(1, 2), tasks.add.s(3)).delay().get(timeout=30)
        seen["group"] = group(tasks.add.s(n, n) for n in (1, 2)).delay().get(timeout=30)
        header = [tasks.add.s(n, n) for n in (1, 2)]
        seen["chord"] = chord(header)(tasks.echo.s()).get(timeout=30)
        return seen

    assert girder_stack.call(start, user=girder_user) == {
        "value": 3,
        "same": True,
        "ready": True,
        "successful": True,
        "failed": False,
        "state": "SUCCESS",
        "job": "Add",
        "revoked": "CANCELED",
        "signature": 2,
        "chain": 6,
        "group": [2, 4],
        "chord": [2, 4],
    }


def test_a_bound_task_follows_another(girder_stack, girder_user):
    def start() -> str:
        from ported_tasks.rows import follows

        return str(follows.delay().id)

    job_id = girder_stack.call(start, user=girder_user)
    assert girder_stack.wait(job_id)["status"] == JobStatus.SUCCESS, girder_stack.log(job_id)
    assert girder_stack.log(job_id).splitlines() == [
        "the child 7 True True False",
        f"the state {int(JobStatus.RUNNING)}",
    ]


def test_options_of_transforms(girder_stack, girder_user):
    def start(folder: str, file: str) -> list[str]:
        from ported_tasks import tasks

        from girder_dask.transforms import (
            GirderFileIdAllowDirect,
            GirderUploadToFolder,
            TemporaryDirectory,
        )

        hook = GirderUploadToFolder(folder, upload_kwargs={"reference": "row"}, must_exist=False)
        there = tasks.report.delay(TemporaryDirectory(), "r.txt", girder_result_hooks=[hook])
        hook = GirderUploadToFolder(folder, must_exist=False)
        away = tasks.echo.delay("nothing/here", girder_result_hooks=[hook])
        direct = GirderFileIdAllowDirect(file, name="own.txt", local_path="nothing/here/own.txt")
        return [str(r.id) for r in (there, away, tasks.file_size.delay(direct))]

    folder = girder_user.client.createFolder(girder_user.folder["_id"], "rows")["_id"]
    file = girder_stack.upload(b"12345", "own.txt", client=girder_user.client)
    ids = girder_stack.call(start, folder, file["_id"], user=girder_user)
    for job_id in ids:
        assert girder_stack.wait(job_id)["status"] == JobStatus.SUCCESS, girder_stack.log(job_id)
    assert [item["name"] for item in girder_user.client.listItem(folder)] == ["r.txt"]
    assert girder_stack.log(ids[2]) == "5 bytes\n"


def test_jobs_and_their_events(girder_stack, girder_user):
    def start() -> list[bool]:
        import time

        from girder import events
        from girder_jobs.models.job import Job
        from ported_tasks import tasks

        heard: list[Any] = []
        name = "jobs.job.update.after"
        events.bind(name, "rows", lambda event: heard.append(event.info["job"]["_id"]))
        try:
            above = tasks.add.delay(1, 2).wait(timeout=30).job
            below = tasks.add.delay(3, 4).wait(timeout=30).job
            Job().setParentJob(below, above)
            children = [job["_id"] for job in Job().listChildJobs(above)]
            deadline = time.monotonic() + 30  # a state is written first
            while not {above["_id"], below["_id"]} <= set(heard) and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            events.unbind(name, "rows")
        return [above["_id"] in heard, below["_id"] in heard, children == [below["_id"]]]

    assert girder_stack.call(start, user=girder_user) == [True, True, True]


@pytest.mark.parametrize("module", ["ported_tasks.tasks"])
def test_the_tasks_of_a_module_are_found(module):
    from girder_dask import entrypoint

    assert "ported_tasks" in entrypoint.get_extensions()
    found = entrypoint.get_module_tasks(module)
    assert {"add", "scale", "describes"} <= {name.rpartition(".")[2] for name in found}
    assert found.keys() <= entrypoint.get_extension_tasks("ported_tasks").keys()
