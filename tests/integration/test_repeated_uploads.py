"""A job that uploads again: what it leaves is what one attempt leaves."""

from __future__ import annotations

from typing import Any

import pytest
from girder_client import GirderClient

from girder_dask.errors import TransformError
from girder_dask.files.upload_recovery import UploadRecovery
from girder_dask.jobs import JobStatus
from girder_dask.protocol.names import ATTEMPT_HEADER, JOB_HEADER, UPLOAD_HEADER
from girder_dask.transforms import GirderItemMetadata, GirderUploadToFolder
from tests.support.rest_site import ask, start_waiting

WRITES = """
paths = []
for n in range(count):
    path = self.work_dir / str(n) / "made.txt"
    path.parent.mkdir()
    path.write_text(f"{n} of attempt {self.request.attempt}")
    paths.append(str(path))
result = tuple(paths)
"""


def run(stack: Any, user: Any, *hooks: Any, **more: Any) -> dict[str, Any]:
    """Run a job with a file for each hook, which is tried twice."""

    def start() -> str:
        from my_worker_tasks import does

        class Raises:  # the last hook, which fails after the others have uploaded
            def transform(self, _data: Any) -> None:
                raise RuntimeError("This may become better.")

        options = {"girder_result_hooks": [*hooks, Raises()], "retries": 1, **more}
        return str(does.apply_async((WRITES,), {"count": len(hooks) + 1}, **options).id)

    job = stack.wait(stack.call(start, user=user))
    assert job["status"] == JobStatus.ERROR
    assert job["dask"]["attempt"] == 2
    return dict(job)


def token_of(user_id: str) -> str:
    """Make a token of a user. Run it in Girder."""
    from girder.models.token import Token
    from girder.models.user import User

    return str(Token().createToken(User().load(user_id, force=True), days=1)["_id"])


def start_with(token: str) -> str:
    """Record a job with a token that was there before. Run it in Girder."""
    from girder.api.rest import getCurrentUser

    from girder_dask.plugin.store import recording
    from girder_dask.protocol.messages import Submission
    from girder_dask.protocol.payload import pack_call

    waiting = Submission(
        "my_worker_tasks:noop",
        pack_call((), {}),
        title="Waits",
        token=token,
        resources={"nowhere": 1},
    )
    (recorded,) = recording.record([waiting], getCurrentUser())
    return recorded.spec.id


def begin_attempt(job_id: str, attempt: int) -> None:
    """Begin an attempt of a job. Run it in Girder."""
    from bson import ObjectId
    from girder_jobs.models.job import Job

    Job().collection.update_one({"_id": ObjectId(job_id)}, {"$set": {"dask.attempt": attempt}})


def contents(user: Any, folder: str) -> dict[str, str]:
    """Return what is in the files of a folder, by the names of their items."""
    found = {}
    for item in user.client.listItem(folder):
        (file,) = user.client.listFile(item["_id"])
        data = b"".join(user.client.downloadFileAsIterator(file["_id"]))
        found[item["name"]] = data.decode()
    return found


def test_a_new_attempt_replaces_what_the_one_before_has_uploaded(girder_stack, girder_user):
    folder = girder_user.folder["_id"]
    girder_stack.upload(b"of somebody", "made.txt", client=girder_user.client)
    run(girder_stack, girder_user, GirderUploadToFolder(folder))
    assert contents(girder_user, folder) == {
        "made.txt": "of somebody",
        "made.txt (1)": "0 of attempt 2",
    }


def test_each_file_of_one_name_is_replaced_once(girder_stack, girder_user):
    folder = girder_user.folder["_id"]
    run(girder_stack, girder_user, GirderUploadToFolder(folder), GirderUploadToFolder(folder))
    assert contents(girder_user, folder) == {
        "made.txt": "0 of attempt 2",
        "made.txt (1)": "1 of attempt 2",
    }


def test_an_attempt_that_is_over_uploads_nothing(girder_stack, girder_user):
    def begin(job_id: str, attempt: int) -> None:
        from bson import ObjectId
        from girder_jobs.models.job import Job

        Job().collection.update_one(
            {"_id": ObjectId(job_id)}, {"$set": {"dask.attempt": attempt, "progress": None}}
        )

    def put(name: str, size: int = 0, **headers: str) -> Any:
        query = f"parentType=folder&parentId={folder}&name={name}&size={size}"
        return ask(girder_stack, "POST", f"file?{query}", token=token, headers=headers)

    def listed(**query: int) -> list[str]:
        path = f"dask/job/{job_id}/uploads"
        answer = ask(girder_stack, "GET", path, token=token, params=query)
        return [file["name"] for file in answer.json()]

    folder = girder_user.folder["_id"]
    waiting = girder_stack.call(start_waiting, user=girder_user)
    job_id, token = waiting["id"], waiting["token"]
    assert put("first.txt", **{ATTEMPT_HEADER: "1"}).status_code == 200
    girder_stack.call(begin, job_id, 2)
    refused = put("late.txt", **{ATTEMPT_HEADER: "1"})
    assert refused.status_code == 409
    assert f"Attempt 1 of job {job_id} is over" in refused.json()["message"]
    assert put("second.txt", **{ATTEMPT_HEADER: "2"}).status_code == 200
    assert put("plain.txt").status_code == 200, "what a task uploads itself is its own affair"
    assert put("odd.txt", **{ATTEMPT_HEADER: "many"}).status_code == 200

    assert contents(girder_user, folder).keys() == {
        *("first.txt", "second.txt", "plain.txt", "odd.txt"),
    }
    assert listed() == ["first.txt", "second.txt"]
    assert listed(before=2) == ["first.txt"]
    stranger = girder_stack.create_user()
    hidden = ask(girder_stack, "GET", f"dask/job/{job_id}/uploads", by=stranger)
    assert hidden.status_code == 403
    girder_user.client.put(f"job/{job_id}/cancel")


def test_what_a_broken_upload_of_a_lost_attempt_has_left_is_removed(girder_stack, girder_user):
    """Girder died after it had made an item, and the worker before it could ask for that."""

    def begin(job_id: str) -> None:
        from bson import ObjectId
        from girder_jobs.models.job import Job

        Job().collection.update_one({"_id": ObjectId(job_id)}, {"$set": {"dask.attempt": 2}})

    def put(name: str, attempt: int) -> int:
        query = f"parentType=folder&parentId={folder}&name={name}&size=0"
        headers = {ATTEMPT_HEADER: str(attempt)}
        return ask(girder_stack, "POST", f"file?{query}", token=token, headers=headers).status_code

    folder = girder_user.folder["_id"]
    waiting = girder_stack.call(start_waiting, user=girder_user)
    job_id, token = waiting["id"], waiting["token"]
    assert put("whole", 1) == 200
    girder_stack.call(raise_at, "model.file.finalizeUpload.before")
    assert put("broken", 1) == 500
    mine = girder_user.client.createItem(folder, "mine")["_id"]
    girder_stack.call(begin, job_id)
    assert put("broken", 2) == 200
    girder_user.client.delete(f"item/{mine}")  # it was not taken for one that was left
    assert contents(girder_user, folder).keys() == {"whole", "broken"}
    girder_user.client.put(f"job/{job_id}/cancel")


# -- uploads that break within Girder ----------------------------------------------------------

STEPS = [
    "model.upload.save.after",
    "model.upload.finalize",
    "model.item.save.after",
    "model.file.finalizeUpload.before",
    "model.file.finalizeUpload.after",
    "data.process",
]


def raise_at(event: str) -> None:
    """Have the next request fail in which this happens. Run it in Girder."""
    from girder import events

    def fail(_event: object) -> None:
        events.unbind(event, "test")
        raise RuntimeError("as it was told to")

    events.bind(event, "test", fail)


@pytest.mark.parametrize("content", ["content", ""], ids=["content", "empty"])
@pytest.mark.timeout(400)
def test_an_upload_that_fails_at_any_step_is_there_once(girder_stack, girder_user, content):
    def start(folder: str) -> str:
        from my_worker_tasks.files import make_tree

        hooks = [GirderUploadToFolder(folder)]
        return str(make_tree.apply_async(({"out": content},), girder_result_hooks=hooks).id)

    for step in STEPS:
        parent = girder_user.folder["_id"]
        folder = girder_user.client.createFolder(parent, step)["_id"]
        girder_stack.call(raise_at, step)
        job_id = girder_stack.call(start, folder, user=girder_user)
        girder_stack.wait(job_id, status=JobStatus.SUCCESS, timeout=60)
        assert contents(girder_user, folder) == {"out": content}, step


def test_what_became_of_an_upload_is_told_to_its_job(girder_stack, girder_user):
    folder = girder_user.folder["_id"]
    waiting = girder_stack.call(start_waiting, user=girder_user)
    job_id, token = waiting["id"], waiting["token"]
    named = {ATTEMPT_HEADER: "1", UPLOAD_HEADER: "mine"}

    def put(method: str, path: str, data: bytes = b"", **query: Any) -> Any:
        options = {"params": query, "data": data, "headers": named, "token": token}
        return ask(girder_stack, method, path, **options).json()

    def settle(upload: str = "", offset: int = 0, **who: Any) -> Any:
        query = {"name": "mine", "folderId": folder, "uploadId": upload, "offset": offset}
        return ask(girder_stack, "POST", f"dask/job/{job_id}/upload", params=query, **who)

    def state(*given: Any) -> str:
        return str(settle(*given, token=token).json()["state"])

    about = {"parentType": "folder", "parentId": folder, "name": "out"}
    piece = 5 * 1024**2  # the least that Girder takes but for the last
    first = put("POST", "file", size=piece + 1, **about)["_id"]
    assert state(first) == "unchanged"
    put("POST", "file/chunk", bytes(piece), uploadId=first, offset=0)
    assert state(first, piece) == "unchanged"
    assert state(first, 0) == "nothing", "a part of the piece is there"
    assert state(first, piece) == "nothing", "it was removed"

    second = put("POST", "file", size=4, **about)["_id"]
    assert put("POST", "file/chunk", b"abcd", uploadId=second, offset=0)["name"] == "out"
    assert state(second) == "complete"
    assert contents(girder_user, folder) == {"out": "abcd"}

    assert settle(by=girder_user).status_code == 403
    assert settle("nothing", token=token).status_code == 400
    strange = girder_stack.upload(b"x", client=girder_stack.admin)["_id"]
    assert state(strange) == "complete", "it is not asked for what others have"
    girder_user.client.put(f"job/{job_id}/cancel")


# -- jobs with a token that was there before ---------------------------------------------------


def test_with_a_token_that_was_given_a_new_attempt_replaces_as_well(girder_stack, girder_user):
    folder = girder_user.folder["_id"]
    token = girder_stack.call(token_of, girder_user.id)
    run(girder_stack, girder_user, GirderUploadToFolder(folder), girder_client_token=token)
    assert contents(girder_user, folder) == {"made.txt": "0 of attempt 2"}


def test_with_the_token_of_somebody_else_as_well(girder_stack, girder_user):
    """Who has the token may not read the job."""
    folder = girder_user.folder["_id"]
    token = girder_stack.call(token_of, girder_user.id)
    owner = girder_stack.create_user()
    run(girder_stack, owner, GirderUploadToFolder(folder), girder_client_token=token)
    assert contents(girder_user, folder) == {"made.txt": "0 of attempt 2"}


@pytest.mark.parametrize("step", ["model.item.save.after", "model.file.finalizeUpload.after"])
def test_with_a_token_that_was_given_an_upload_that_fails_is_there_once(
    girder_stack, girder_user, step
):
    def start(folder: str, token: str) -> str:
        from my_worker_tasks.files import make_tree

        options = {"girder_result_hooks": [GirderUploadToFolder(folder)]}
        options["girder_client_token"] = token
        return str(make_tree.apply_async(({"out": "content"},), **options).id)

    folder = girder_user.folder["_id"]
    token = girder_stack.call(token_of, girder_user.id)
    girder_stack.call(raise_at, step)
    job_id = girder_stack.call(start, folder, token, user=girder_user)
    girder_stack.wait(job_id, status=JobStatus.SUCCESS)
    assert contents(girder_user, folder) == {"out": "content"}


def test_with_a_token_that_was_given_a_task_runs_at_most_once(girder_stack, girder_user):
    def start(token: str) -> str:
        from my_worker_tasks import noop

        return str(noop.apply_async(at_most_once=True, girder_client_token=token).id)

    token = girder_stack.call(token_of, girder_user.id)
    job_id = girder_stack.call(start, token, user=girder_user)
    girder_stack.wait(job_id, status=JobStatus.SUCCESS)


def test_with_a_token_that_was_given_an_attempt_that_is_over_uploads_nothing(
    girder_stack, girder_user
):
    def put(name: str, attempt: int, job: str) -> Any:
        query = f"parentType=folder&parentId={folder}&name={name}&size=0"
        headers = {ATTEMPT_HEADER: str(attempt), JOB_HEADER: job}
        return ask(girder_stack, "POST", f"file?{query}", token=token, headers=headers)

    folder = girder_user.folder["_id"]
    token = girder_stack.call(token_of, girder_user.id)
    job_id = girder_stack.call(start_with, token, user=girder_user)
    assert put("first.txt", 1, job_id).status_code == 200
    girder_stack.call(begin_attempt, job_id, 2)
    refused = put("late.txt", 1, job_id)
    assert refused.status_code == 409
    assert refused.json()["message"] == (
        f"Attempt 1 of job {job_id} is over: its worker was taken for dead, and a later attempt "
        "uploads 'late.txt' in its place."
    )
    assert put("second.txt", 2, job_id).status_code == 200
    girder_user.client.put(f"job/{job_id}/cancel")
    refused = put("after.txt", 2, job_id)
    assert refused.status_code == 409
    assert "is over: the job has ended" in refused.json()["message"]
    assert put("elsewhere.txt", 1, "5f3c00000000000000000000").status_code == 200
    assert put("odd.txt", 1, "none").status_code == 200
    assert contents(girder_user, folder).keys() == {
        *("first.txt", "second.txt", "elsewhere.txt", "odd.txt"),
    }
    uploaded = girder_user.client.get(f"dask/job/{job_id}/uploads")
    assert [(file["name"], file["attempt"]) for file in uploaded] == [
        ("first.txt", 1),
        ("second.txt", 2),
    ]


def test_a_job_of_which_another_one_has_the_token_is_told_apart(girder_stack, girder_user):
    """A job may give its own token to one that it starts: the attempts are not mixed up."""
    parent = girder_stack.call(start_waiting, user=girder_user)
    girder_stack.call(begin_attempt, parent["id"], 2)
    child = girder_stack.call(start_with, parent["token"], user=girder_user)
    query = f"parentType=folder&parentId={girder_user.folder['_id']}&name=out&size=0"
    headers = {ATTEMPT_HEADER: "1", JOB_HEADER: child}
    made = ask(girder_stack, "POST", f"file?{query}", token=parent["token"], headers=headers)
    assert made.status_code == 200, made.text
    assert len(girder_user.client.get(f"dask/job/{child}/uploads")) == 1
    for job_id in (child, parent["id"]):
        girder_user.client.put(f"job/{job_id}/cancel")


# -- metadata -----------------------------------------------------------------------------------


def test_an_attempt_that_is_over_sets_no_metadata(girder_stack, girder_user):
    def put(value: int, **headers: str) -> Any:
        path = f"item/{item}/metadata"
        return ask(girder_stack, "PUT", path, token=token, json={"n": value}, headers=headers)

    def value() -> int:
        return int(girder_user.client.getItem(item)["meta"]["n"])

    item = girder_user.client.createItem(girder_user.folder["_id"], "facts")["_id"]
    waiting = girder_stack.call(start_waiting, user=girder_user)
    job_id, token = waiting["id"], waiting["token"]
    named = {JOB_HEADER: job_id}
    assert put(1, **{ATTEMPT_HEADER: "1"}, **named).status_code == 200
    girder_stack.call(begin_attempt, job_id, 2)
    assert put(2, **{ATTEMPT_HEADER: "2"}, **named).status_code == 200
    for names in (named, {}):
        refused = put(3, **{ATTEMPT_HEADER: "1"}, **names)
        assert refused.status_code == 409
        assert f"Attempt 1 of job {job_id} is over" in refused.json()["message"]
    assert value() == 2
    assert put(4).status_code == 200, "what a task sets itself is its own affair"
    assert value() == 4

    hook = GirderItemMetadata(item, gc=GirderClient(apiUrl=girder_stack.api))
    hook.gc.token = token
    hook.job, hook.upload_recovery = {"_id": job_id}, UploadRecovery(job_id, 1)
    with pytest.raises(TransformError, match=f"Attempt 1 of job {job_id} is over"):
        hook.transform({"n": 5})
    hook.upload_recovery = UploadRecovery(job_id, 2)
    hook.transform({"n": 6})
    assert value() == 6
    girder_user.client.put(f"job/{job_id}/cancel")
