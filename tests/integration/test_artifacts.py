"""The files that jobs leave behind."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from girder_client import GirderClient, HttpError

from girder_dask.errors import TransformError
from girder_dask.files.upload_recovery import UploadRecovery
from girder_dask.protocol.names import ATTEMPT_HEADER, JOB_HEADER
from girder_dask.transforms import GirderUploadJobArtifact
from tests.support.rest_site import ask, start_waiting


@pytest.fixture
def job(girder_stack, girder_user) -> dict[str, str]:
    return girder_stack.call(start_waiting, user=girder_user)


def add(stack: Any, job: dict[str, str], name: str, data: Any, **options: Any) -> Any:
    params = {"name": name, **options.pop("params", {})}
    options.setdefault("token", None if "by" in options else job["token"])
    return ask(stack, "POST", f"job/{job['id']}/artifact", params=params, data=data, **options)


def names(stack: Any, job: dict[str, str]) -> list[str]:
    return [a["name"] for a in stack.admin.get(f"job/{job['id']}/artifact")]


def files_in_database() -> int:
    from girder.models.file import File

    return int(File().collection.count_documents({"attachedToType": "job"}))


def uploads_in_database() -> int:
    from girder.models.upload import Upload

    return int(Upload().collection.count_documents({}))


def test_a_running_job_adds_to_itself_and_its_owner_reads(girder_stack, girder_user, job):
    added = add(girder_stack, job, "report.txt", b"24 coins", params={"mimeType": "text/plain"})
    assert added.status_code == 200, added.text
    listed = girder_user.client.get(f"job/{job['id']}/artifact")
    (only,) = listed
    assert only["_id"] == added.json()["_id"]
    assert only.keys() == {"_id", "name", "size", "mimeType", "created"}
    assert (only["name"], only["size"], only["mimeType"]) == ("report.txt", 8, "text/plain")
    path = f"job/{job['id']}/artifact/report.txt"
    answer = ask(girder_stack, "GET", path, by=girder_user)
    assert answer.content == b"24 coins"
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert 'filename="report.txt"' in answer.headers["Content-Disposition"]
    part = ask(girder_stack, "GET", path, by=girder_user, headers={"Range": "bytes=3-4"})
    assert (part.status_code, part.content) == (206, b"co")
    # A browser has no header to send: it shows the cookie.
    cookie = {"girderToken": girder_user.client.token}
    assert ask(girder_stack, "GET", path, cookies=cookie).content == b"24 coins"
    # They are files of Girder as well.
    whole = ask(girder_stack, "GET", f"file/{only['_id']}/download", by=girder_user)
    assert whole.content == b"24 coins"


def test_the_transform_of_girder_worker_works(girder_stack, girder_user, job, tmp_path):
    from girder_worker_utils.transforms import girder_io

    (tmp_path / "inner").mkdir()
    (tmp_path / "plot.png").write_bytes(b"png")
    (tmp_path / "data.unknown-type").write_bytes(b"data")
    (tmp_path / "empty.txt").write_bytes(b"")
    client = GirderClient(apiUrl=girder_stack.api)
    client.token = job["token"]
    girder_io.GirderUploadJobArtifact(job_id=job["id"], gc=client).transform(str(tmp_path))
    girder_io.GirderUploadJobArtifact(job_id=job["id"], name="other.png", gc=client).transform(
        str(tmp_path / "plot.png")
    )
    listed = {a["name"]: a for a in girder_user.client.get(f"job/{job['id']}/artifact")}
    assert {name: a["size"] for name, a in listed.items()} == {
        "plot.png": 3,
        "data.unknown-type": 4,
        "empty.txt": 0,
        "other.png": 3,
    }
    assert listed["plot.png"]["mimeType"] == "image/png"
    assert listed["data.unknown-type"]["mimeType"] == "application/octet-stream"


def test_names_may_have_directories(girder_stack, girder_user, job):
    for name in ("plots/a/b.txt", "with space & more?.txt", "ümlaut.txt", "a+b%20.txt"):
        assert add(girder_stack, job, name, name.encode()).status_code == 200
        for path in (quote(name), quote(name, safe="")):
            answer = ask(girder_stack, "GET", f"job/{job['id']}/artifact/{path}", by=girder_user)
            assert answer.content == name.encode(), (name, answer.text)


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x", "a/../b", "/etc/passwd", "a//b", "a\\b", "a%2fb", "a\nb", "x" * 2000, "a/ "],
)
def test_names_that_are_none_are_refused(girder_stack, job, name):
    answer = add(girder_stack, job, name, b"x")
    assert answer.status_code == 400
    assert names(girder_stack, job) == []


def test_one_of_the_same_name_is_replaced(girder_stack, girder_user, job):
    before = girder_stack.call(files_in_database)
    for text in (b"first try", b"second"):
        assert add(girder_stack, job, "report.txt", text).status_code == 200
    assert names(girder_stack, job) == ["report.txt"]
    answer = ask(girder_stack, "GET", f"job/{job['id']}/artifact/report.txt", by=girder_user)
    assert answer.content == b"second"
    assert girder_stack.call(files_in_database) == before + 1


def begin_second_attempt(job_id: str) -> None:
    from bson import ObjectId
    from girder_jobs.models.job import Job

    Job().collection.update_one({"_id": ObjectId(job_id)}, {"$set": {"dask.attempt": 2}})


def headers_of(job: dict[str, str], attempt: int) -> dict[str, str]:
    return {ATTEMPT_HEADER: str(attempt), JOB_HEADER: job["id"]}


def test_an_attempt_that_is_over_adds_and_replaces_nothing(girder_stack, girder_user, job):
    """It began to send one before it was over, as a worker that was frozen meanwhile."""

    def attempted(attempt: int, name: str, data: Any, **more: Any) -> Any:
        return add(girder_stack, job, name, data, headers=headers_of(job, attempt), **more)

    def frozen():
        yield b"of the "
        girder_stack.call(begin_second_attempt, job["id"])
        assert attempted(2, "a", b"of the second").status_code == 200
        yield b"first"

    files, uploads = girder_stack.call(files_in_database), girder_stack.call(uploads_in_database)
    refused = [attempted(1, "a", frozen(), params={"size": 12})]
    refused += [attempted(1, name, data) for name, data in (("a", b"late"), ("b", b""))]
    for answer in refused:
        assert answer.status_code == 409
        assert f"Attempt 1 of job {job['id']} is over" in answer.json()["message"]
    assert names(girder_stack, job) == ["a"]
    kept = ask(girder_stack, "GET", f"job/{job['id']}/artifact/a", by=girder_user)
    assert kept.content == b"of the second"
    assert girder_stack.call(files_in_database) == files + 1
    assert girder_stack.call(uploads_in_database) == uploads
    assert add(girder_stack, job, "own", b"x").status_code == 200, "a task's own affair"


def test_a_hook_of_an_attempt_that_is_over_adds_nothing(girder_stack, job, tmp_path):
    client = GirderClient(apiUrl=girder_stack.api)
    client.token = job["token"]
    girder_stack.call(begin_second_attempt, job["id"])

    def push(attempt: int) -> None:
        (tmp_path / "a").write_text(f"of attempt {attempt}")
        hook = GirderUploadJobArtifact(gc=client)
        hook.job, hook.upload_recovery = {"_id": job["id"]}, UploadRecovery(job["id"], attempt)
        hook.transform(tmp_path / "a")

    push(2)
    with pytest.raises(TransformError, match=f"Attempt 1 of job {job['id']} is over"):
        push(1)
    kept = ask(girder_stack, "GET", f"job/{job['id']}/artifact/a", token=job["token"])
    assert kept.content == b"of attempt 2"


def test_an_attempt_that_is_over_adds_nothing_to_another_job(girder_stack, girder_user, job):
    other = girder_stack.call(start_waiting, user=girder_user)
    girder_stack.call(begin_second_attempt, job["id"])
    for attempt, status in ((1, 409), (2, 200)):
        headers, token = headers_of(job, attempt), job["token"]
        answer = add(girder_stack, other, "a", b"a", headers=headers, token=token)
        assert answer.status_code == status, answer.text


def test_a_large_one_is_streamed(girder_stack, girder_user, job):
    data = os.urandom(1024**2) * 70  # more than two pieces
    assert add(girder_stack, job, "large.bin", io.BytesIO(data)).status_code == 200
    answer = ask(girder_stack, "GET", f"job/{job['id']}/artifact/large.bin", by=girder_user)
    assert answer.content == data


@pytest.mark.parametrize("size", [9, 3])
def test_another_size_than_announced_is_refused_and_nothing_stays(girder_stack, job, size):
    files, uploads = girder_stack.call(files_in_database), girder_stack.call(uploads_in_database)
    answer = add(girder_stack, job, "x", b"coins", params={"size": size})
    assert answer.status_code == 400
    assert "5" in answer.json()["message"]

    def pieces():
        yield b"coi"
        yield b"ns"

    chunked = add(girder_stack, job, "x", pieces(), params={"size": 9})
    assert chunked.status_code == 400
    assert "Only 5 of 9 bytes" in chunked.json()["message"]
    assert add(girder_stack, job, "x", pieces()).status_code == 400
    assert names(girder_stack, job) == []
    assert girder_stack.call(files_in_database) == files
    assert girder_stack.call(uploads_in_database) == uploads
    assert add(girder_stack, job, "x", pieces(), params={"size": 5}).status_code == 200


def test_the_access_rules_are_those_of_the_job(girder_stack, girder_user, girder_admin, job):
    add(girder_stack, job, "x", b"secret")
    path = f"job/{job['id']}/artifact"
    stranger = girder_stack.create_user()
    other = girder_stack.call(start_waiting, user=stranger)
    for who, status in (({"by": stranger}, 403), ({"token": other["token"]}, 403), ({}, 401)):
        assert ask(girder_stack, "GET", path, **who).status_code == status
        assert ask(girder_stack, "GET", f"{path}/x", **who).status_code == status
        assert ask(girder_stack, "DELETE", f"{path}/x", **who).status_code == status
        answer = ask(girder_stack, "POST", path, params={"name": "y"}, data=b"y", **who)
        assert answer.status_code == status
        (file,) = girder_admin.get(path)
        assert ask(girder_stack, "GET", f"file/{file['_id']}", **who).status_code == status
    share(girder_stack, job["id"], stranger.id, 0)
    assert ask(girder_stack, "GET", f"{path}/x", by=stranger).content == b"secret"
    assert ask(girder_stack, "DELETE", f"{path}/x", by=stranger).status_code == 403
    assert add(girder_stack, job, "y", b"y", by=stranger).status_code == 403
    share(girder_stack, job["id"], stranger.id, 1)
    assert add(girder_stack, job, "y", b"y", by=stranger).status_code == 200
    assert ask(girder_stack, "DELETE", f"{path}/x", by=stranger).status_code == 200
    assert names(girder_stack, job) == ["y"]


def share(stack: Any, job_id: str, user_id: str, level: int) -> None:
    def grant() -> None:
        from girder.models.user import User
        from girder_jobs.models.job import Job

        job = Job().load(job_id, force=True)
        user = User().load(user_id, force=True)
        Job().setUserAccess(job, user, level, save=True)

    stack.call(grant)


def test_one_that_is_not_there(girder_stack, girder_user, job):
    answer = ask(girder_stack, "GET", f"job/{job['id']}/artifact/none.txt", by=girder_user)
    assert answer.status_code == 404
    assert "no artifact 'none.txt'" in answer.json()["message"]
    assert (
        ask(girder_stack, "GET", "job/5f3c00000000000000000000/artifact", by=girder_user)
    ).status_code == 400


def test_they_go_with_the_job(girder_stack, girder_user, girder_admin, job):
    def path_of(file_id: str) -> str:
        from girder.models.file import File

        return str(File().getLocalFilePath(File().load(file_id, force=True)))

    before = girder_stack.call(files_in_database)
    added = add(girder_stack, job, "a/b.txt", os.urandom(20)).json()
    add(girder_stack, job, "c.txt", os.urandom(20))
    path = girder_stack.call(path_of, added["_id"])
    assert Path(path).exists()
    girder_user.client.delete(f"job/{job['id']}")
    assert girder_stack.call(files_in_database) == before
    assert not Path(path).exists()
    with pytest.raises(HttpError):
        girder_admin.get(f"job/{job['id']}/artifact")


def test_artifacts_of_any_job_go_with_it(girder_stack, girder_user):
    """Also those of a job that is not ours."""

    def make() -> str:
        from girder.api.rest import getCurrentUser
        from girder_jobs.models.job import Job

        return str(Job().createJob("Plain", "plain", user=getCurrentUser())["_id"])

    before = girder_stack.call(files_in_database)
    job = {"id": girder_stack.call(make, user=girder_user)}
    assert add(girder_stack, job, "x", b"x", by=girder_user).status_code == 200
    girder_user.client.delete(f"job/{job['id']}")
    assert girder_stack.call(files_in_database) == before


def test_an_administrator_can_move_them_to_another_assetstore(
    girder_stack, girder_admin, girder_user, job, tmp_path
):
    file = add(girder_stack, job, "moved.txt", b"still here").json()
    store = girder_admin.post(
        "assetstore", parameters={"name": "second", "type": 0, "root": str(tmp_path / "second")}
    )
    girder_admin.put(f"file/{file['_id']}/move", parameters={"assetstoreId": store["_id"]})
    answer = ask(girder_stack, "GET", f"job/{job['id']}/artifact/moved.txt", by=girder_user)
    assert answer.content == b"still here"
    girder_admin.delete(f"job/{job['id']}")
    girder_admin.delete(f"assetstore/{store['_id']}")


def test_artifacts_are_found_by_an_index(girder_stack, job):
    def explain() -> str:
        from bson import ObjectId
        from girder.models.file import File

        from girder_dask.plugin.store import artifacts

        query = {**artifacts._of(ObjectId(job["id"])), "name": "x"}
        return str(File().collection.find(query).explain()["queryPlanner"]["winningPlan"])

    assert "dask_artifacts" in girder_stack.call(explain)
