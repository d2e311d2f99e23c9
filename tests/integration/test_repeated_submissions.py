"""Requests to start jobs that Girder is sent twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from girder_dask.protocol.messages import MapParent
from girder_dask.protocol.wire_json import to_json
from tests.support.rest_site import ask, call

KEY = "0123456789abcdef" * 2


@pytest.fixture
def user(girder_stack: Any) -> Any:
    return create_admin(girder_stack)


def create_admin(stack: Any) -> Any:
    """Make a user who may start any task."""

    def make(user_id: str) -> None:
        from bson import ObjectId
        from girder.models.user import User

        User().collection.update_one({"_id": ObjectId(user_id)}, {"$set": {"admin": True}})

    user = stack.create_user()
    stack.call(make, user.id)
    return user


def send(stack: Any, user: Any, key: Any, *, count: int = 2, group: bool = False) -> Any:
    calls = [call("my_worker_tasks:noop", title=str(n)) for n in range(count)]
    parent = to_json(MapParent(title="All").to_wire()) if group else None
    body = {"submissions": calls, "group": parent, "key": key}
    return ask(stack, "POST", "dask/job", by=user, json=body)


def count_jobs(user_id: str) -> int:
    from bson import ObjectId
    from girder_jobs.models.job import Job

    return int(Job().collection.count_documents({"userId": ObjectId(user_id)}))


@pytest.mark.parametrize("group", [False, True])
def test_jobs_are_started_once(girder_stack: Any, user: Any, group: bool) -> None:
    first, again = (send(girder_stack, user, KEY, group=group).json() for _ in range(2))
    titles = [*(["All"] if group else []), "0", "1"]
    assert [job["title"] for job in again["jobs"]] == titles
    assert [job["_id"] for job in again["jobs"]] == [job["_id"] for job in first["jobs"]]
    assert again["jobs"][0]["kwargs"] == first["jobs"][0]["kwargs"]
    assert "log" not in again["jobs"][0]
    for job in again["jobs"]:
        assert girder_stack.wait(job["_id"])["status"] == 3


def test_jobs_are_started_once_at_the_same_time(girder_stack: Any, user: Any) -> None:
    """Some may be told to come again."""
    with ThreadPoolExecutor(6) as threads:
        sent = [threads.submit(send, girder_stack, user, KEY, count=1) for _ in range(6)]
        answers = [future.result(60) for future in sent]
    ids = {job["_id"] for a in answers if a.ok for job in a.json()["jobs"]}
    assert len(ids) == 1
    found = girder_stack.call(count_jobs, user.id)
    assert found == 1


def test_another_key_and_another_user_start_others(girder_stack: Any, user: Any) -> None:
    other = create_admin(girder_stack)
    requests = [(user, KEY), (user, KEY[::-1]), (other, KEY), (user, None), (user, None)]
    answers = [send(girder_stack, who, key, count=1).json() for who, key in requests]
    assert len({job["_id"] for answer in answers for job in answer["jobs"]}) == 5


def test_some_of_the_jobs_are_there(girder_stack: Any, user: Any) -> None:
    """So they may be being recorded."""
    first, second = send(girder_stack, user, KEY).json()["jobs"]
    girder_stack.wait(second["_id"])
    ask(girder_stack, "DELETE", f"job/{second['_id']}", by=user)
    answer = send(girder_stack, user, KEY)
    assert answer.status_code == 503
    assert answer.json()["message"] == "1 of 2 jobs of this request are recorded so far."
    assert girder_stack.call(count_jobs, user.id) == 1
    assert girder_stack.wait(first["_id"])["status"] == 3


@pytest.mark.parametrize(("count", "group"), [(3, False), (1, False), (2, True)])
def test_a_key_of_another_request_is_refused(
    girder_stack: Any, user: Any, count: int, group: bool
) -> None:
    first = send(girder_stack, user, KEY).json()["jobs"]
    answer = send(girder_stack, user, KEY, count=count, group=group)
    assert answer.status_code == 400
    message = answer.json()["message"]
    assert (
        f"request for 2 jobs, and this one is for {count + group}. No job was created." in message
    )
    assert girder_stack.call(count_jobs, user.id) == 2
    again = send(girder_stack, user, KEY).json()["jobs"]
    assert [job["_id"] for job in again] == [job["_id"] for job in first]


@pytest.mark.parametrize("key", ["", "x" * 32, 5, KEY + "0"])
def test_a_key_that_is_none(girder_stack: Any, user: Any, key: Any) -> None:
    answer = send(girder_stack, user, key)
    assert answer.status_code == 400
    assert "32 hexadecimal digits" in answer.json()["message"]
