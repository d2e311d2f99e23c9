"""No document of MongoDB holds a token after the jobs of girder_worker's tasks have ended."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from bson import ObjectId, json_util

from girder_dask.jobs import FINAL, JobStatus
from tests.support.celery_site import wait_until
from tests.support.package_site import PackageSite


@pytest.fixture(scope="module")
def stored_tokens(package_site: PackageSite) -> Iterator[Any]:
    """Have Girder note each token that it stores, and return a function that returns them."""

    def watch() -> None:
        from girder.models.token import Token

        collection, noted = Token().collection, []

        def noting(name: str) -> Any:
            original = getattr(collection, name)

            def write(*args: Any, **kwargs: Any) -> Any:
                given = args[1] if name == "replace_one" else args[0]
                noted.extend(given if isinstance(given, list) else [given])
                return original(*args, **kwargs)

            return write

        names = ("insert_one", "insert_many", "replace_one")
        for name, method in {name: noting(name) for name in names}.items():
            setattr(collection, name, method)
        vars(Token())["noted_for_test"] = noted

    def read() -> set[str]:
        from girder.models.token import Token

        return {str(token["_id"]) for token in vars(Token())["noted_for_test"]}

    def restore() -> None:
        from girder.models.token import Token

        for name in ("insert_one", "insert_many", "replace_one"):
            delattr(Token().collection, name)
        del vars(Token())["noted_for_test"]

    package_site.call(watch)
    yield lambda: package_site.call(read)
    package_site.call(restore)


def _forms(token: str) -> list[str]:
    """Return a token, and what of its base64 does not depend on what is before and after it."""
    found = [token]
    for n in range(3):
        encoded = base64.b64encode(b"x" * n + token.encode()).decode()
        found.append(encoded[4:-4])
    return found


def _holds(value: Any, tokens: set[str]) -> bool:
    """Return True if a value of a document contains a token, as text, base64 or hexadecimal."""
    text = json_util.dumps(value)
    return any(
        any(form in text for form in _forms(token)) or token.encode().hex() in text
        for token in tokens
    )


def _found(site: PackageSite, tokens: set[str]) -> list[str]:
    """Return the collections and fields that contain a token."""
    return [
        f"{name}: {field} of {document.get('title')}"
        for name in site.collections()
        for document in ([] if name == "token" else site.documents(name))
        for field, value in document.items()
        if _holds(value, tokens)
    ]


def _start_all(file_id: str) -> list[str]:
    """Start tasks that end in all ways, with tokens wherever a package may put them."""
    from celery import chain
    from girder.api.rest import getCurrentUser
    from girder.models.token import Token
    from girder_jobs.models.job import Job
    from girder_worker.utils.transforms.girder_io import GirderFileId
    from their_tasks import tasks

    def token() -> Any:
        return Token().createToken(user=getCurrentUser())

    scheduled = Job().createJob(
        title="Scheduled",
        type="tests",
        handler="worker_handler",
        user=getCurrentUser(),
        args=(token()["_id"], [{"of": token()["_id"]}]),
        kwargs={"token": token()["_id"], "nested": {"deep": [{"girderToken": token()["_id"]}]}},
        otherFields={
            "celeryTaskName": "their_tasks.tasks.shows",
            "meta": {"of": token()["_id"], "name": "kept"},
        },
    )
    scheduled["token"] = Job().createJobToken(scheduled)
    Job().scheduleJob(Job().save(scheduled))
    started = [
        tasks.shows.delay(token()["_id"], token=token()["_id"], fails=True),
        tasks.shows.delay(token()["_id"], girder_job_title=f"with {token()['_id']}"),
        tasks.shows.delay(1, girder_client_token=token()),
        tasks.shows.delay(f"--girderToken={token()['_id']}", [f"http://x?token={token()['_id']}"]),
        tasks.size.delay(GirderFileId(file_id)),
        tasks.fails.delay(token()["_id"]),
        tasks.tries_again.delay(1),
        tasks.doubles_until.delay(3),
        tasks.gives_up.delay(),
        tasks.starts_child.delay(2),
        tasks.is_replaced.delay(2),
        tasks.user_of.delay(),
    ]
    chain(tasks.size.s(GirderFileId(file_id)), tasks.add.s(1), tasks.shows.s(token()["_id"]))()
    canceled = [tasks.waits.delay(token()["_id"]), tasks.waits.apply_async(countdown=60)]
    for each in canceled:
        each.revoke()
    return [str(scheduled["_id"]), *(str(each.job["_id"]) for each in [*started, *canceled])]


def test_no_document_holds_a_token_after_the_end(
    package_site: PackageSite, stored_tokens: Any
) -> None:
    package_site.require("slicer_cli_web")
    user = package_site.create_user()
    file = package_site.upload(b"x" * 5, client=user.client)
    ingested = _ingest(package_site)
    scheduled, failed, titled, *_ = package_site.call(_start_all, file["_id"], user=user)
    wait_until(
        lambda: not package_site.documents("job", {"status": {"$nin": [*map(int, FINAL)]}}), 90
    )
    # The end is visible a moment before what it leaves is removed.
    wait_until(lambda: not package_site.documents("dask_job", {"payload_bytes": {"$gt": 0}}))
    tokens = stored_tokens()
    assert len(tokens) > 20
    with contextlib.suppress(AssertionError):  # the next line says what is found
        wait_until(lambda: not _found(package_site, tokens), 30)
    assert _found(package_site, tokens) == []

    job = package_site.job(scheduled)
    assert job["status"] == JobStatus.SUCCESS
    assert job["args"] == ["(removed)", [{"of": "(removed)"}]]
    assert job["kwargs"] == {
        "token": "(removed)",
        "nested": {"deep": [{"girderToken": "(removed)"}]},
    }
    assert job["meta"] == {"of": "(removed)", "name": "kept"}
    assert not package_site.documents("token", {"scope": f"jobs.job_{scheduled}"})
    assert package_site.job(failed)["status"] == JobStatus.ERROR
    assert "RuntimeError" in package_site.log(failed)
    assert package_site.job(titled)["title"] == "with (removed)"
    assert package_site.job(ingested)["kwargs"]["token"] == "(removed)"
    # The sessions of users are no business of a job.
    assert user.client.get("user/me")["_id"] == user.id


def _ingest(site: PackageSite) -> str:
    """Ingest an image without CLIs by slicer_cli_web, and return the id of its job."""
    site.engine.add_image("no/tools:1", {}, ['ENTRYPOINT ["/bin/false"]'])
    collection = site.admin.createCollection("No tools", public=True)
    folder = site.admin.createFolder(collection["_id"], "CLIs", parentType="collection")
    parameters = {"name": "no/tools:1", "folder": folder["_id"]}
    return str(site.admin.put("slicer_cli_web/docker_image", parameters=parameters)["_id"])


def test_a_whole_save_of_an_old_copy_brings_no_token_back(package_site: PackageSite) -> None:
    def start() -> tuple[Any, str]:
        from girder.api.rest import getCurrentUser
        from girder.models.token import Token
        from girder_jobs.models.job import Job
        from their_tasks.tasks import shows

        token = Token().createToken(user=getCurrentUser())["_id"]
        job_id = shows.delay(token, token=token).job["_id"]
        return Job().load(job_id, force=True), token

    copy, token = package_site.call(start)
    job_id = str(copy["_id"])
    package_site.wait(job_id, status=JobStatus.SUCCESS)
    wait_until(lambda: package_site.job(job_id)["args"] == ["(removed)"])

    def save(copy: dict[str, Any]) -> None:
        from girder_jobs.models.job import Job

        Job().save({**copy, "note": "saved"})

    package_site.call(save, copy)
    (stored,) = package_site.documents("job", {"_id": ObjectId(job_id)})
    assert stored["note"] == "saved"
    assert token not in json_util.dumps(stored)
