"""Messages that whoever holds the token of a running job may not send."""

from __future__ import annotations

import base64
import contextlib
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pymongo
import pytest
from bson import ObjectId
from girder_client import GirderClient, HttpError

from girder_dask.jobs import JobStatus
from girder_dask.testing.stack import User
from tests.support.celery_site import CelerySite, wait_until

ADD = "their_tasks.tasks.add"
DOCKER_RUN = "girder_worker.docker.tasks.docker_run"
LOCALLY = "their_tasks.tasks.locally"
GOOD = {"task": DOCKER_RUN, "args": ["good-image"], "kwargs": {"container_args": ["ls"]}}


class Attacker:
    """The holder of the token of a job that runs."""

    def __init__(self, site: CelerySite, start: Callable[[], str] | None = None) -> None:
        self.site = site
        user = site.create_user()
        self.job_id = (
            site.call(start, user=user) if start else site.delay("waits", None, 600.0, user=user)
        )
        wait_until(lambda: "waiting" in site.log(self.job_id))
        (record,) = site.documents("dask_job", {"_id": ObjectId(self.job_id)})
        self.client = GirderClient(apiUrl=site.api)
        self.client.token = record["token"]

    def send(
        self,
        args: Any = (1, 2),
        *,
        task: str = ADD,
        kwargs: Any = None,
        embed: Any = None,
        job: Any = None,
        key: str | None = None,
        **fields: Any,
    ) -> list[str]:
        """Send a message, and return the ids of its jobs."""
        message = {
            "version": 1,
            "id": str(ObjectId()),
            "task": task,
            "queue": "celery",
            "body": json.dumps([list(args), kwargs or {}, embed or {}]),
            **fields,
        }
        body = {"message": message, "job": job, "key": key or uuid.uuid4().hex}
        answer = self.client.post("dask/celery/message", json=body)
        return [str(each) for each in answer["jobs"]]

    def refused(self, *args: Any, **fields: Any) -> str:
        """Return why Girder refuses a message."""
        with pytest.raises(HttpError) as error:
            self.send(*args, **fields)
        assert error.value.status in (400, 403, 413), error.value.responseText
        return str(json.loads(error.value.responseText)["message"])

    def end(self) -> None:
        """Cancel the job."""
        self.site.admin.put(f"job/{self.job_id}/cancel")
        self.site.wait(self.job_id, status=JobStatus.CANCELED)


@pytest.fixture(scope="module")
def attacker(celery_site: CelerySite) -> Iterator[Attacker]:
    attacker = Attacker(celery_site)
    yield attacker
    attacker.end()


@pytest.fixture(scope="module")
def in_chain(celery_site: CelerySite) -> Iterator[Attacker]:
    """The holder of the token of a job with calls that follow it, and with data like calls."""
    attacker = Attacker(celery_site, _start_before_docker_run)
    yield attacker
    attacker.end()


def _start_before_docker_run() -> str:
    from celery import chord
    from girder_worker.docker.tasks import docker_run
    from their_tasks.tasks import Scale, add, locally, waits

    once = docker_run.si("good-image", container_args=["ls"])
    data = {"task": DOCKER_RUN, "args": ["evil-image"], "kwargs": {"privileged": True}}
    member = chord([add.si(1, 2), add.si(3, 4)], docker_run.si("good-body"))
    hooked = docker_run.si("hooked-image", girder_result_hooks=[Scale(7)])
    link = [once, member, locally.si(), docker_run.s("good-image", name="of-member"), hooked]
    return str(waits.apply_async((data, 600.0), link=link, link_error=[once]).job["_id"])


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
    # The scheduler writes into the field dask when it claims the job, at any time.
    (before,) = site.documents("job", {"_id": ObjectId(waiting)})
    more = {"apiUrl": "http://evil", "girder_client_token": "x" * 64}
    (job_id,) = attacker.send(
        task="their_tasks.tasks.user_of", args=(), headers={"jobInfoSpec": info, **more}
    )
    site.wait(job_id, status=JobStatus.SUCCESS)
    seen = site.value(job_id)
    assert (seen["reference"], seen["has_token"], seen["same_address"]) == (job_id, False, True)
    (after,) = site.documents("job", {"_id": ObjectId(waiting)})
    known = ("status", "timestamps", "args", "kwargs", "title", "userId", "celeryTaskId", "access")
    assert {name: after.get(name) for name in known} == {name: before.get(name) for name in known}
    assert after["dask"]["attempt"] == before["dask"]["attempt"]
    assert "jobInfoSpec" not in after
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


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (["evil-image", "good-image"], {"container_args": ["ls"]}),
        (["evil-image", "good-body"], {}),
        (["evil-image", "other-image"], {"name": "of-member"}),
        (["evil-image"], {"privileged": True}),
        (["evil-image"], {"container_args": ["ls"]}),
    ],
)
def test_message_does_not_change_a_call_that_girder_has_stored(
    in_chain: Attacker, args: list[Any], kwargs: dict[str, Any]
) -> None:
    assert "docker_run" in in_chain.refused(args, task=DOCKER_RUN, kwargs=kwargs)
    call = {"task": DOCKER_RUN, "args": args, "kwargs": kwargs, "immutable": True}
    assert "docker_run" in in_chain.refused(embed={"callbacks": [call]})


@pytest.mark.parametrize(
    "changed",
    [
        {"immutable": False},
        {"immutable": True, "options": {"queue": "local"}},
        {"immutable": True, "options": {"link": [{"task": DOCKER_RUN, "args": ["evil-image"]}]}},
    ],
)
def test_message_gives_no_more_rights_to_a_call_that_girder_has_stored(
    in_chain: Attacker, changed: dict[str, Any]
) -> None:
    reason = in_chain.refused(embed={"chain": [{**GOOD, **changed}]})
    assert "docker_run on Dask" in reason


def test_message_takes_no_call_to_the_workers_with_the_database(in_chain: Attacker) -> None:
    where = "the queue local, whose workers have Girder's database"
    assert where in in_chain.refused(queue="local")
    assert where in in_chain.refused(
        GOOD["args"], task=DOCKER_RUN, kwargs=GOOD["kwargs"], queue="local"
    )
    call = {"task": ADD, "args": [1, 2], "options": {"queue": "local"}}
    group = {
        "task": "celery.group",
        "kwargs": {"tasks": [{"task": ADD}]},
        "options": call["options"],
    }
    for following in (call, group, {"task": ADD, "options": {"link": call}}):
        assert where in in_chain.refused(embed={"chain": [following]})
    unlock = {"task": "celery.chord_unlock", "queue": "local"}
    assert where in in_chain.refused(["group", call], **unlock)
    assert where in in_chain.refused(["group", GOOD], **unlock)


def test_message_starts_no_task_of_that_queue_elsewhere(attacker: Attacker) -> None:
    for queue in ("celery", "local"):
        assert "whose workers have" in attacker.refused([], task=LOCALLY, queue=queue)
    assert "whose workers have" in attacker.refused(embed={"callbacks": [{"task": LOCALLY}]})


def test_message_takes_a_stored_call_to_its_queue(in_chain: Attacker) -> None:
    (job_id,) = in_chain.send([], task=LOCALLY, queue="local")
    (record,) = in_chain.site.documents("dask_job", {"_id": ObjectId(job_id)})
    in_chain.site.admin.put(f"job/{job_id}/cancel")
    assert record["resources"] == [["queue:local", 1.0]]


def test_message_starts_what_the_site_allows_for_all(attacker: Attacker) -> None:
    site, sent = attacker.site, {"task": "other.tasks.run", "job": {"version": 1, "title": "It"}}
    assert "other.tasks:run" in attacker.refused(**sent)
    allowed = {"key": "dask.allow_tasks", "value": json.dumps(["other.*"])}
    site.admin.put("system/setting", parameters=allowed)
    try:
        (job_id,) = attacker.send(**sent)
        assert "other_fields set note" in attacker.refused(
            task="other.tasks.run", job={"version": 1, "other_fields": {"note": 1}}
        )
        assert "whose workers have" in attacker.refused(task="other.tasks.run", queue="local")
    finally:
        site.admin.delete("system/setting", parameters={"key": "dask.allow_tasks"})
    site.admin.put(f"job/{job_id}/cancel")
    (job,) = site.documents("job", {"_id": ObjectId(job_id)})
    assert job["celeryTaskId"]
    assert job["celeryParentTaskId"]


def test_message_with_too_many_calls_is_refused(attacker: Attacker) -> None:
    calls = [{"task": ADD}] * 50_001
    assert "more than 50,000 calls" in attacker.refused(embed={"callbacks": calls})
    calls = [{"task": f"{ADD}{n}"} for n in range(1_001)]
    assert "more than 1,000 tasks" in attacker.refused(embed={"callbacks": calls})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"body": json.dumps([[["x"] * 600_000], {}, {}])}, "more than the 2,097,152 of a job"),
        ({"body": json.dumps([[[[]] * 150_000], {}, {}])}, "more than the 100,000 lists"),
        ({"headers": {"x": "y" * 200_000}}, "headers of more than the 131,072 characters"),
        ({"headers": {"girder_result_hooks": [[]] * 100_000}}, "headers of more than the 131,072"),
        ({"headers": {"x": [[]] * 600_000}}, "The body has more than 500,000 lists"),
        ({"body": json.dumps([[{"py/dask-same": 0}], {}, {}])}, "not of protocol 2 of Celery"),
    ],
)
def test_message_that_would_hold_girder_is_refused(
    attacker: Attacker, fields: dict[str, Any], reason: str
) -> None:
    assert reason in attacker.refused(**fields)


def test_message_with_the_transforms_of_another_call_is_refused(in_chain: Attacker) -> None:
    hooks = {"girder_result_hooks": [{"py/object": "their_tasks.tasks.Scale", "factor": 7}]}
    call = {"task": DOCKER_RUN, "headers": hooks}
    reason = in_chain.refused(GOOD["args"], kwargs=GOOD["kwargs"], **call)
    assert "headers['girder_result_hooks'][0] has an object of 'their_tasks.tasks.Scale'" in reason
    following = {**GOOD, "immutable": True, "options": {"headers": hooks}}
    assert "an object of" in in_chain.refused(embed={"chain": [following]})
    (job_id,) = in_chain.send(["hooked-image"], **call)
    in_chain.site.admin.put(f"job/{job_id}/cancel")


def test_message_needs_a_key(attacker: Attacker) -> None:
    message = {
        "version": 1,
        "id": "one",
        "task": ADD,
        "queue": "celery",
        "body": "[[1, 2], {}, {}]",
    }
    for more, reason in (({}, "key"), ({"key": None}, "key"), ({"key": "k"}, "32 hexadecimal")):
        with pytest.raises(HttpError) as error:
            attacker.client.post("dask/celery/message", json={"message": message, **more})
        assert error.value.status == 400
        assert reason in error.value.responseText


def test_message_with_an_id_that_the_job_has_used_a_thousand_times_is_refused(
    attacker: Attacker,
) -> None:
    site, task_id = attacker.site, str(ObjectId())
    (sender,) = site.documents("job", {"_id": ObjectId(attacker.job_id)})
    fields = {"celeryTaskId": task_id, "parentId": sender["_id"], "userId": sender["userId"]}
    known = {"status": JobStatus.SUCCESS, "created": sender["created"], "title": "One of many"}
    with contextlib.closing(pymongo.MongoClient(site.mongo)) as client:
        collection = client.get_default_database()["job"]
        collection.insert_many([{**fields, **known} for _ in range(1_000)])
        try:
            assert "has started 1,000 tasks with the id" in attacker.refused(id=task_id)
        finally:
            collection.delete_many(fields)
