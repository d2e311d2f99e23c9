"""Messages of running jobs: what they may hold, what they may start, and where tokens are."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from bson import ObjectId, json_util

from girder_dask.jobs import JobStatus
from girder_dask.testing.stack import User
from tests.support.celery_site import CelerySite, wait_until

_COLLECTIONS = ("job", "dask_job", "dask_payload", "dask_log")


class Sender:
    """Someone who has got hold of the token of a running job of an ordinary user."""

    def __init__(self, site: CelerySite, user: User) -> None:
        self.site = site
        self.user = user
        self.job_id = site.delay("waits", user=user)
        site.wait(self.job_id, status=JobStatus.RUNNING)
        (record,) = site.documents("dask_job", {"_id": ObjectId(self.job_id)})
        self.token = record["token"]

    def send(
        self,
        task: str = "their_tasks.tasks.add",
        args: Any = (1, 2),
        embed: Any = None,
        *,
        token: str | None = None,
        key: str | None = None,
        job: Any = None,
        **fields: Any,
    ) -> requests.Response:
        body = json.dumps([list(args), {}, embed or {}]).encode()
        message = {
            "version": 1,
            "id": str(uuid.uuid4()),
            "task": task,
            "queue": "celery",
            "body": base64.b64encode(body).decode(),
            "body_encoding": "base64",
            "headers": {"lang": "py", "task": task},
            **fields,
        }
        return requests.post(
            f"{self.site.api}/dask/celery/message",
            json={"message": message, "job": job, "key": key or uuid.uuid4().hex},
            headers={"Girder-Token": token or self.token},
            timeout=30,
        )


@pytest.fixture(scope="module")
def sender(celery_site: CelerySite) -> Iterator[Sender]:
    sender = Sender(celery_site, celery_site.create_user())
    yield sender
    celery_site.admin.put(f"job/{sender.job_id}/cancel")


def test_a_job_may_start_a_task_of_its_package(sender: Sender) -> None:
    answer = sender.send()
    assert answer.status_code == 200
    (job_id,) = answer.json()["jobs"]
    sender.site.wait(job_id, status=JobStatus.SUCCESS)
    (record,) = sender.site.documents("dask_job", {"_id": ObjectId(job_id)})
    assert record["trusted"] is False


def test_a_repeated_request_starts_one_job(sender: Sender) -> None:
    key = uuid.uuid4().hex
    answers = [sender.send(key=key).json()["jobs"] for _ in range(2)]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 1


def test_a_call_that_is_repeated_is_sent_once_and_another_with_its_id_is_not_lost(
    celery_site: CelerySite,
) -> None:
    """As with Celery, a run may start different calls with one id. A second run starts none."""
    task_id = str(uuid.uuid4())
    job_id = celery_site.delay("sends_with_one_id", task_id)
    celery_site.wait(job_id, status=JobStatus.SUCCESS)
    children = celery_site.children(job_id)
    assert [job["args"] for job in children] == [[1, 2], [3, 4]]
    told = [line for line in celery_site.log(job_id).splitlines() if "is not started" in line]
    line = (
        "their_tasks.tasks.add is not started: an earlier run of this job has started another call "
        f"with the same id {task_id}, as job {children[1]['_id']}, and that call counts."
    )
    assert told == [line, line]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"args": [{"py/reduce": [{"py/function": "os.system"}, ["id"]]}]}, "py/reduce"),
        ({"args": [{"py/object": "their_tasks.tasks.Scale", "factor": 2}]}, "may run code"),
        (
            {"embed": {"chain": [{"task": "a.b", "args": [{"py/type": "os.system"}]}]}},
            "may run code",
        ),
        ({"headers": {"girder_result_hooks": [{"py/object": "os.system"}]}}, "may run code"),
        ({"content_type": "application/x-python-serialize"}, "may send JSON alone"),
        ({"content_type": "application/x-yaml"}, "may send JSON alone"),
        ({"task": "girder_worker.docker.tasks.docker_run", "args": ["image"]}, "docker_run"),
        ({"task": "celery.map"}, "celery:map"),
        ({"embed": {"chain": [{"task": "girder_worker.docker.tasks.docker_run"}]}}, "docker_run"),
        (
            {"embed": {"callbacks": [{"task": "x", "kwargs": {"tasks": [{"task": "y.z"}]}}]}},
            "may not start",
        ),
        ({"properties": {"priority": 10**6}}, "priority"),
        *(
            ({"headers": {name: [{"task": "girder_worker.docker.tasks.docker_run"}]}}, name)
            for name in ("callbacks", "errbacks", "chain", "chord")
        ),
    ],
)
def test_a_job_may_not_send_code_or_start_any_task(
    sender: Sender, message: dict[str, Any], reason: str
) -> None:
    answer = sender.send(**message)
    assert answer.status_code == 403, answer.text
    assert reason in answer.json()["message"]


@pytest.mark.parametrize("name", ["status", "celeryTaskId", "dask", "access", "userId", "handler"])
def test_a_job_may_not_set_the_core_fields_of_another(sender: Sender, name: str) -> None:
    answer = sender.send(job={"version": 1, "title": "Other", "other_fields": {name: "x"}})
    assert answer.status_code == 400, answer.text
    assert name in answer.json()["message"]


def test_a_message_needs_the_token_of_a_running_job(sender: Sender) -> None:
    answer = sender.send(token=sender.user.client.token)
    assert answer.status_code == 403
    assert "Only a running job may send messages" in answer.json()["message"]


@pytest.mark.parametrize("body", [{}, {"message": 3}, {"message": {"version": 1}}, {"message": {}}])
def test_a_malformed_message_is_refused_in_words(sender: Sender, body: dict[str, Any]) -> None:
    answer = requests.post(
        f"{sender.site.api}/dask/celery/message",
        json=body,
        headers={"Girder-Token": sender.token},
        timeout=30,
    )
    assert answer.status_code == 400, answer.text


def test_a_job_may_only_revoke_what_it_has_started(sender: Sender) -> None:
    other = sender.site.delay("waits")
    (job,) = sender.site.documents("job", {"_id": ObjectId(other)})
    answer = requests.post(
        f"{sender.site.api}/dask/celery/revoke",
        json={"ids": [job["celeryTaskId"]]},
        headers={"Girder-Token": sender.token},
        timeout=30,
    )
    sender.site.admin.put(f"job/{other}/cancel")
    assert answer.status_code == 403


def test_no_document_holds_a_token(celery_site: CelerySite) -> None:
    user = celery_site.create_user()
    file = celery_site.upload(b"n" * 5, client=user.client)

    def start(file_id: str) -> list[str]:
        from celery import chain
        from girder.api.rest import getCurrentUser
        from girder_jobs.models.job import Job
        from girder_worker.utils.transforms.girder_io import GirderFileId, GirderUploadToItem
        from their_tasks.tasks import add, size, user_of, waits

        scheduled = Job().createJob(
            title="Scheduled",
            type="scheduled",
            handler="worker_handler",
            user=getCurrentUser(),
            args=(3, 4),
            otherFields={"celeryTaskName": "their_tasks.tasks.add"},
        )
        Job().scheduleJob(scheduled)
        chain(size.s(GirderFileId(file_id)), add.s(1)).apply_async()
        user_of.delay(girder_result_hooks=[GirderUploadToItem("5" * 24)])
        return [str(waits.delay(GirderFileId(file_id)).job["_id"])]

    before = {token["_id"] for token in celery_site.documents("token")}
    (waiting,) = celery_site.call(start, file["_id"], user=user)
    celery_site.wait(waiting, status=JobStatus.RUNNING)
    made = {token["_id"] for token in celery_site.documents("token")} - before
    assert made
    for collection in _COLLECTIONS:
        for document in celery_site.documents(collection):
            document.pop("token", None)  # the record of an unfinished job has its token
            text = json_util.dumps(document)
            assert not [token for token in made if token in text]
            assert "jobInfoSpec" not in document
    celery_site.admin.put(f"job/{waiting}/cancel")
    query = {"userId": ObjectId(user.id), "dask.open": True}
    wait_until(lambda: not celery_site.documents("job", query))
    # The end is visible a moment before what it leaves is removed.
    wait_until(lambda: not celery_site.documents("token", {"_id": {"$in": list(made)}}))


def test_a_token_among_the_arguments_is_blanked_at_the_end(celery_site: CelerySite) -> None:
    def start() -> tuple[str, str]:
        from girder.api.rest import getCurrentUser
        from girder_jobs.models.job import Job

        job = Job().createJob(
            title="Ingest",
            type="ingest",
            handler="worker_handler",
            user=getCurrentUser(),
            kwargs={},
            otherFields={"celeryTaskName": "their_tasks.tasks.takes_token"},
        )
        token = Job().createJobToken(job)
        job["kwargs"] = {"token": token["_id"]}
        job = Job().save(job)
        Job().scheduleJob(job)
        return str(job["_id"]), token["_id"]

    job_id, token = celery_site.call(start)
    job = celery_site.wait(job_id, status=JobStatus.SUCCESS)
    assert celery_site.value(job_id) == len(token)
    wait_until(lambda: celery_site.job(job_id)["kwargs"] == {"token": "(removed)"})
    wait_until(lambda: not celery_site.documents("token", {"_id": token}))
    assert token not in json_util.dumps(job["dask"])
