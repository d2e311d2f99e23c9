"""Messages that whoever holds the token of a running job may not send."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from bson import ObjectId
from girder_client import GirderClient, HttpError

from girder_dask.jobs import JobStatus
from girder_dask.testing.stack import User
from tests.support.celery_site import CelerySite, wait_until

ADD = "their_tasks.tasks.add"


class Attacker:
    """The holder of the token of a job that runs."""

    def __init__(self, site: CelerySite) -> None:
        self.site = site
        self.job_id = site.delay("waits", user=site.create_user())
        wait_until(lambda: "waiting" in site.log(self.job_id))
        (record,) = site.documents("dask_job", {"_id": ObjectId(self.job_id)})
        self.client = GirderClient(apiUrl=site.api)
        self.client.token = record["token"]

    def send(
        self, args: Any = (1, 2), *, task: str = ADD, job: Any = None, **fields: Any
    ) -> list[str]:
        """Send a message, and return the ids of its jobs."""
        message = {
            "version": 1,
            "id": str(ObjectId()),
            "task": task,
            "queue": "celery",
            "body": json.dumps([list(args), {}, {}]),
            **fields,
        }
        answer = self.client.post("dask/celery/message", json={"message": message, "job": job})
        return [str(each) for each in answer["jobs"]]

    def refused(self, *args: Any, **fields: Any) -> str:
        """Return why Girder refuses a message."""
        with pytest.raises(HttpError) as error:
            self.send(*args, **fields)
        assert error.value.status in (400, 403), error.value.responseText
        return str(json.loads(error.value.responseText)["message"])


@pytest.fixture(scope="module")
def attacker(celery_site: CelerySite) -> Iterator[Attacker]:
    attacker = Attacker(celery_site)
    yield attacker
    celery_site.admin.put(f"job/{attacker.job_id}/cancel")
    celery_site.wait(attacker.job_id, status=JobStatus.CANCELED)


@pytest.fixture(scope="module")
def victim(celery_site: CelerySite) -> User:
    return celery_site.create_user()


def test_message_starts_tasks_of_the_package(attacker: Attacker) -> None:
    (job_id,) = attacker.send()
    attacker.site.wait(job_id, status=JobStatus.SUCCESS)
    assert attacker.site.value(job_id) == 3


def test_message_does_not_adopt_the_job_that_it_names(attacker: Attacker, victim: User) -> None:
    site = attacker.site
    waiting = site.delay("add", 5, 6, user=victim, countdown=3600)
    info = {"reference": waiting, "headers": {"Girder-Token": "x" * 64}, "url": "http://evil"}
    (before,) = site.documents("job", {"_id": ObjectId(waiting)})
    more = {"apiUrl": "http://evil", "girder_client_token": "x" * 64}
    (job_id,) = attacker.send(
        task="their_tasks.tasks.user_of", args=(), headers={"jobInfoSpec": info, **more}
    )
    site.wait(job_id, status=JobStatus.SUCCESS)
    seen = site.value(job_id)
    assert (seen["reference"], seen["has_token"], seen["same_address"]) == (job_id, False, True)
    (after,) = site.documents("job", {"_id": ObjectId(waiting)})
    assert after == before
    site.admin.put(f"job/{waiting}/cancel")


def test_message_does_not_take_the_id_of_a_task_of_another_user(
    attacker: Attacker, victim: User
) -> None:
    site = attacker.site
    job_id = site.delay("add", 5, 6, user=victim)
    site.wait(job_id, status=JobStatus.SUCCESS)
    (job,) = site.documents("job", {"_id": ObjectId(job_id)})
    assert "another user has a task with this id" in attacker.refused(id=job["celeryTaskId"])
    for route, body in (("result", {"id": ""}), ("revoke", {"ids": []})):
        value = job["celeryTaskId"] if route == "result" else [job["celeryTaskId"]]
        with pytest.raises(HttpError) as error:
            attacker.client.post(f"dask/celery/{route}", json={next(iter(body)): value})
        assert error.value.status == 403


def test_message_that_is_read_in_two_ways_is_refused(attacker: Attacker) -> None:
    harmless = base64.b64encode(b"[[1],{},{}]  ").decode()
    code = {"py/reduce": [{"py/function": "posix.system"}, {"py/tuple": ["id"]}]}
    body = json.dumps([[harmless, code], {}, {}])
    assert "not of protocol 2" in attacker.refused(body=body, body_encoding="x")
    assert "py/reduce" in attacker.refused(body=body)


def test_message_with_a_path_for_an_id_is_refused(attacker: Attacker) -> None:
    kind = "girder_worker.utils.transforms.girder_io.GirderFileId"
    value = {"py/object": kind, "gc": None, "file_id": "/home/worker/data"}
    reason = attacker.refused([value], task="their_tasks.tasks.size")
    assert "whose file_id is no id: '/home/worker/data'" in reason


@pytest.mark.parametrize(
    "fields",
    [
        {"headers": {"timelimit": 5}},
        {"headers": {"timelimit": {"a": 1}}},
        {"headers": {"timelimit": ["soon"]}},
        {"headers": {"timelimit": [-1]}},
        {"headers": {"eta": "tomorrow"}},
        {"properties": {"priority": "high"}},
        {"properties": {"priority": 10**9}},
        {"properties": {"priority": 10**9}, "task": "celery.chord_unlock"},
        {"headers": {"timelimit": [1e12]}, "task": "celery.chord_unlock"},
        {"queue": "q" * 400},
        {"queue": "a\nb"},
        {"id": "a\nb"},
        {"task": "their_tasks.tasks.add\nforged"},
        {"body": "[" * 100_000},
        {"body": '["é"]', "content_encoding": "utf-7"},
        {"content_type": "application/x-python-serialize"},
        {"task": "girder_worker.docker.tasks.docker_run"},
        {"task": "celery.map"},
        {"job": {"version": 1, "title": "t" * 2000}},
        {"job": {"version": 1, "other_fields": {"celeryTaskId": "x"}}},
        {"job": {"version": 1, "other_fields": {"userId": "x"}}},
    ],
)
def test_message_that_is_malformed_or_too_large_is_refused(
    attacker: Attacker, fields: dict[str, Any]
) -> None:
    assert attacker.refused(**fields)


def test_message_cannot_set_the_owner_or_a_token(attacker: Attacker) -> None:
    job = {"version": 1, "user": {"_id": "x"}, "token": "x" * 64}
    (job_id,) = attacker.send(job=job)
    attacker.site.wait(job_id, status=JobStatus.SUCCESS)
    ids = [ObjectId(job_id), ObjectId(attacker.job_id)]
    child, parent = attacker.site.documents("job", {"_id": {"$in": ids}})
    assert child["userId"] == parent["userId"]
