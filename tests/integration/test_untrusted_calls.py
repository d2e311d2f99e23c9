"""What those may not do who may start some tasks, and no code of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from girder_dask import JobResult, connect, task
from girder_dask.errors import GirderError, TransformError
from girder_dask.jobs import JobStatus
from girder_dask.protocol.payload import pack_call
from girder_dask.transforms import (
    GirderFileId,
    GirderUploadJobArtifact,
    GirderUploadToFolder,
)
from tests.integration.test_permissions import configure
from tests.support.rest_site import ask, call, read, stored_token, submit

ECHO = "ported_tasks.tasks:echo"


@pytest.fixture(autouse=True)
def allowed(girder_admin: Any) -> Iterator[None]:
    configure(girder_admin, "dask.allow_tasks", [ECHO, "my_worker_tasks:*", "my_worker_tasks.*"])
    yield
    girder_admin.delete("system/setting", parameters={"key": "dask.allow_tasks"})


def run(stack: Any, user: Any, argument: Any, *hooks: Any, task: str = ECHO) -> dict[str, Any]:
    """Start a task as a user, and return its job when it has ended."""
    answer = submit(stack, call(task, payload=pack_call((argument,), {}, hooks)), by=user)
    assert answer.status_code == 200, answer.text
    return stack.wait(answer.json()["jobs"][0]["_id"])


def test_an_id_cannot_lead_to_another_route():
    for bad in ("../dask/job?x=", "..", "a/b", "5f3c?x", "5f3c#"):
        for kind in (GirderFileId, GirderUploadJobArtifact, GirderUploadToFolder):
            with pytest.raises(TransformError, match="not the id"):
                kind(bad)


def test_a_file_cannot_be_posted_as_a_request(girder_stack, girder_user, tmp_path):
    """The call is made without the constructor, as who attacks would."""
    mark = tmp_path / "owned"
    evil = pack_call((), {}, function=lambda: mark.write_text("x"))
    body = {"submissions": [call(ECHO, payload=evil)], "group": None}
    file = girder_stack.upload(json.dumps(body).encode(), client=girder_user.client)
    hook = GirderUploadJobArtifact("5f3c")
    hook.job_id = hook._id = "../dask/job?x="
    job = run(girder_stack, girder_user, GirderFileId(file["_id"]), hook)
    assert job["status"] == JobStatus.ERROR
    assert "not the id of a job" in girder_stack.log(job["_id"])
    assert not mark.exists()


def test_a_body_must_be_said_to_be_json(girder_stack, girder_admin):
    answer = ask(girder_stack, "POST", "dask/job", by=girder_admin, data=b'{"submissions": []}')
    assert answer.status_code == 415
    assert "application/json" in answer.json()["message"]
    kind = {"Content-Type": "application/json"}
    deep = b"[" * 200_000
    answer = ask(girder_stack, "POST", "dask/job", by=girder_admin, data=deep, headers=kind)
    assert answer.status_code == 400


def test_a_job_has_no_more_trust_than_who_started_it(girder_stack, girder_user):
    calls = call("my_worker_tasks.steady:steady", payload=pack_call((100, 20.0), {}))
    (job,) = submit(girder_stack, calls, by=girder_user).json()["jobs"]
    assert girder_stack.call(read, "dask_job", job["_id"])["trusted"] is False
    token = girder_stack.call(stored_token, job["_id"])
    pickled = pack_call((), {}, function=lambda: 1)
    refused = submit(girder_stack, call(ECHO, payload=pickled), token=token)
    assert refused.status_code == 403
    assert job["_id"] in refused.json()["message"]
    child = submit(girder_stack, call(ECHO, 1), token=token).json()["jobs"][0]
    assert girder_stack.call(read, "dask_job", child["_id"])["trusted"] is False
    girder_stack.admin.put(f"job/{job['_id']}/cancel")
    girder_stack.wait(job["_id"])


def test_files_of_the_worker_are_neither_sent_nor_deleted(girder_stack, girder_user, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    folder = girder_user.folder["_id"]
    hooks = [GirderUploadToFolder(folder, delete_file=True), GirderUploadJobArtifact()]
    for hook in hooks:
        for path in (secret, tmp_path):
            job = run(girder_stack, girder_user, str(path), hook)
            assert job["status"] == JobStatus.ERROR
            assert "is not in the directory of the job" in girder_stack.log(job["_id"])
    assert secret.read_text() == "secret"
    assert list(girder_user.client.listItem(folder)) == []


def test_hard_links_to_files_of_the_worker_are_not_sent(girder_stack, girder_user, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    folder = girder_user.folder["_id"]
    for hook in (GirderUploadToFolder(folder), GirderUploadJobArtifact()):
        job = run(
            girder_stack, girder_user, str(secret), hook, task="my_worker_tasks.files:hard_link"
        )
        assert job["status"] == JobStatus.ERROR
        assert "a hard link" in girder_stack.log(job["_id"])
    assert list(girder_user.client.listItem(folder)) == []


def test_what_a_job_has_fetched_may_be_sent(girder_stack, girder_user):
    file = girder_stack.upload(b"own", "own.txt", client=girder_user.client)
    folder = girder_user.client.createFolder(girder_user.folder["_id"], "out")["_id"]
    job = run(girder_stack, girder_user, GirderFileId(file["_id"]), GirderUploadToFolder(folder))
    assert job["status"] == JobStatus.SUCCESS, girder_stack.log(job["_id"])
    assert [item["name"] for item in girder_user.client.listItem(folder)] == ["own.txt"]


@pytest.mark.parametrize(
    "name", ["my_worker_tasks:isolated.speaks", "my_worker_tasks:output.chatty"]
)
def test_another_name_of_a_task_is_none(girder_stack, girder_user, name):
    job = run(girder_stack, girder_user, 1, task=name)
    assert job["status"] == JobStatus.ERROR
    assert "has no task" in girder_stack.log(job["_id"])


def test_modules_without_tasks_are_not_imported(girder_stack, girder_user, girder_admin):
    configure(girder_admin, "dask.allow_tasks", True)
    job = run(girder_stack, girder_user, 1, task="this:x")
    assert job["status"] == JobStatus.ERROR
    log = girder_stack.log(job["_id"])
    assert "The Zen of Python" not in log
    assert "names this" in log


def test_a_future_is_for_those_who_may_read_the_job(girder_stack, girder_user, girder_admin):
    with connect(girder_stack.girder, token=girder_admin.token, scheduler=girder_stack.scheduler):
        result = task(lambda: b"x" * (2 << 20)).delay().wait(timeout=30)
    with (
        connect(
            girder_stack.girder, token=girder_user.client.token, scheduler=girder_stack.scheduler
        ),
        pytest.raises(GirderError, match="denied"),
    ):
        _ = JobResult(result.id).future
