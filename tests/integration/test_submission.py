"""Starting jobs over REST, and reading what came of them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from girder_dask.errors import SubmissionError
from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import MapParent
from girder_dask.protocol.payload import open_value, pack_call
from girder_dask.protocol.wire_json import from_json
from tests.support.rest_site import (
    ask,
    call,
    read,
    set_status,
    start_waiting,
    submit,
    without_claims,
)


def start(stack: Any, *calls: Any, **options: Any) -> list[dict[str, Any]]:
    options.setdefault("by", stack.admin)
    answer = submit(stack, *calls, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()["jobs"]


def test_a_job_is_recorded_runs_and_its_result_is_read(girder_stack, girder_admin):
    (job,) = start(
        girder_stack,
        call("my_worker_tasks:my_task", 7, title="Seven", public=True, other_fields={"station": 7}),
    )
    assert (job["title"], job["status"], job["handler"]) == ("Seven", 1, "dask_handler")
    assert "log" not in job
    document = girder_stack.call(read, "job", job["_id"])
    assert document["station"] == 7
    assert str(document["userId"]) == girder_admin.get("user/me")["_id"]
    assert girder_stack.wait(job["_id"])["status"] == JobStatus.SUCCESS
    kept = ask(girder_stack, "GET", f"dask/job/{job['_id']}/result", by=girder_admin).json()
    assert kept.keys() == {"status", "value", "error", "exception", "parts"}
    value = open_value(from_json(kept["value"]), unpickle=False)
    assert value == {"args": [7], "kwargs": {}}
    assert (kept["status"], kept["error"], kept["exception"]) == (JobStatus.SUCCESS, None, None)


def test_a_failed_job_keeps_its_error(girder_stack, girder_admin):
    (job,) = start(girder_stack, call("my_worker_tasks:fails", "no coins"))
    assert girder_stack.wait(job["_id"])["status"] == JobStatus.ERROR
    kept = ask(girder_stack, "GET", f"dask/job/{job['_id']}/result", by=girder_admin).json()
    assert kept["value"] is None
    assert "no coins" in kept["error"]


def test_an_exception_is_kept_beside_the_error(girder_stack, girder_admin):
    def fail(job_id: str) -> None:
        from girder_dask.plugin.store import updates
        from girder_dask.protocol.messages import JobUpdate

        news = JobUpdate(
            job_id, 1, 1, statuses=[[2, 1.0], [4, 2.0]], error="ValueError: no", exception=b"\0e"
        )
        updates.apply("test", [news])

    with without_claims(girder_stack):
        waiting = girder_stack.call(start_waiting)
        girder_stack.call(fail, waiting["id"])
    kept = ask(girder_stack, "GET", f"dask/job/{waiting['id']}/result", by=girder_admin).json()
    assert from_json(kept["exception"]) == b"\0e"
    assert kept["error"] == "ValueError: no"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "missing required field `submissions`"),
        ({"submissions": "x"}, "Expected `array`, got `str` - at `$.submissions`"),
        ({"submissions": [5]}, "Submission 1 is not a JSON object"),
        ({"submissions": [{"version": 99}]}, "girder-dask doctor"),
        (
            {"submissions": [call(), call(retries="x")]},
            "Submission 2 cannot be read: Expected `int`, got `str` - at `$.retries`",
        ),
        ({"submissions": [call(timeout=-1)]}, "Expected `float` > 0.0 - at `$.timeout`"),
        (
            {"submissions": [call(resources={"GPU": "x"})]},
            "Expected `float`, got `str` - at `$.resources[...]`",
        ),
        ({"submissions": [call(priority=True)]}, "Expected `int`, got `bool` - at `$.priority`"),
        (
            {"submissions": [call(isolation="none")]},
            "Expected `thread` or `process` - at `$.isolation`",
        ),
        (
            {"submissions": [call("no_task")]},
            "Expected the name of a task, such as `package.module:function` - at `$.task`",
        ),
        (
            {"submissions": [call(not_before=time.time() + 11 * 366 * 86_400)]},
            "Expected a time within 3,652 days from now - at `$.not_before`",
        ),
        ({"submissions": [call(payload=b"x")]}, "Expected a packed call - at `$.payload`"),
        (
            {"submissions": [call(dependencies=["x"])]},
            "Expected the id of a job, 24 hexadecimal digits - at `$.dependencies[0]`",
        ),
        ({"submissions": [call(other_fields={"created": 5})]}, "must not set created"),
        ({"submissions": [call(other_fields={"userId": "x"})]}, "must not set userId"),
        ({"submissions": [call(other_fields={"parentId": "x"})]}, "there is no job 'x'"),
        ({"submissions": [call()], "group": 5}, "The group is not a JSON object"),
        (
            {"submissions": [call(dependencies=["5f3c00000000000000000000"])]},
            "There is no job 5f3c",
        ),
        ({"submissions": [call(payload=b"p" + bytes(17 * 1024**2))]}, "Upload large data"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_recorded(
    girder_stack, girder_admin, body, message
):
    def count() -> int:
        from girder_jobs.models.job import Job

        return int(Job().collection.count_documents({}))

    before = girder_stack.call(count)
    answer = ask(girder_stack, "POST", "dask/job", by=girder_admin, json=body)
    assert answer.status_code == 400
    assert message in answer.json()["message"]
    assert girder_stack.call(count) == before


def test_girder_does_not_open_what_it_is_sent(girder_stack, tmp_path):
    class Trap:
        def __reduce__(self) -> Any:
            from pathlib import Path

            return Path.touch, (tmp_path / "opened",)

    payload = pack_call((Trap(),), {})
    (job,) = start(girder_stack, call(payload=payload, resources={"nowhere": 1}))
    ask(girder_stack, "GET", f"job/{job['_id']}", by=girder_stack.admin)
    ask(girder_stack, "PUT", f"job/{job['_id']}/cancel", by=girder_stack.admin)
    assert not (tmp_path / "opened").exists()


def test_a_running_job_starts_children_for_its_owner(girder_stack, girder_user):
    parent = girder_stack.call(start_waiting, user=girder_user)
    (job,) = start(girder_stack, call(), by=None, token=parent["token"])
    document = girder_stack.call(read, "job", job["_id"])
    assert str(document["parentId"]) == parent["id"]
    assert str(document["userId"]) == girder_user.id
    assert job["parentId"] == parent["id"]
    group = MapParent("Many").to_wire()
    many, child = start(girder_stack, call(), group=group, by=None, token=parent["token"])
    assert (many["parentId"], child["parentId"]) == (parent["id"], many["_id"])
    canceled = ask(girder_stack, "PUT", f"job/{parent['id']}/cancel", by=girder_user)
    assert canceled.json()["status"] == JobStatus.CANCELED
    late = submit(girder_stack, call(), token=parent["token"])
    assert late.status_code == 401
    girder_stack.wait(many["_id"])


def test_a_job_that_is_being_canceled_starts_no_more(girder_stack, girder_user):
    with without_claims(girder_stack):
        parent = girder_stack.call(start_waiting, user=girder_user)
        girder_stack.call(set_status, parent["id"], JobStatus.CANCELING)
        answer = submit(girder_stack, call(), token=parent["token"])
    assert answer.status_code == 403
    assert "is being canceled" in answer.json()["message"]


def test_a_job_that_is_canceled_while_it_starts_others_leaves_none(girder_stack, girder_user):
    def start_late(parent: str) -> int:
        from bson import ObjectId
        from girder_jobs.models.job import Job

        from girder_dask.client.backend import get_backend
        from girder_dask.protocol.messages import Submission
        from girder_dask.protocol.payload import pack_call

        call = Submission("my_worker_tasks:noop", pack_call((), {}), resources={"nowhere": 1})
        (job,) = get_backend().submit_for(None, ObjectId(parent), [call], None)
        return int(Job().load(job["_id"], force=True)["status"])

    parent = girder_stack.call(start_waiting, user=girder_user)
    # After the request was let in, and before its jobs are recorded.
    girder_stack.call(set_status, parent["id"], JobStatus.CANCELING)
    assert girder_stack.call(start_late, parent["id"]) == JobStatus.CANCELED


def test_dependencies_are_kept_and_handed_over(girder_stack, girder_admin):
    first = girder_stack.call(start_waiting)
    (job,) = start(girder_stack, call(dependencies=[first["id"]], resources={"nowhere": 1}))
    record = girder_stack.call(read, "dask_job", job["_id"])
    assert record["dependencies"] == [first["id"]]
    # The token of the job reads the result, whoever owns it. It is stored when the job is sent.
    deadline = time.monotonic() + 20
    result = f"dask/job/{first['id']}/result"
    while (answer := ask(girder_stack, "GET", result, token=record["token"])).status_code != 200:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.02)
    assert answer.json()["status"] == JobStatus.QUEUED
    ask(girder_stack, "PUT", f"job/{job['_id']}/cancel", by=girder_admin)


def test_states_of_many_jobs(girder_stack, girder_user, girder_admin):
    ids = [girder_stack.call(start_waiting, user=girder_user)["id"] for _ in range(2)]
    ids.append(girder_stack.call(start_waiting)["id"])
    asked = {"ids": [*ids, "5f3c00000000000000000000", "nonsense"]}
    seen = ask(girder_stack, "POST", "dask/job/states", by=girder_user, json=asked).json()["jobs"]
    assert {job["_id"] for job in seen} == set(ids[:2])
    assert seen[0].keys() == {"_id", "title", "status", "progress", "updated", "userId", "dask"}
    seen = ask(girder_stack, "POST", "dask/job/states", by=girder_admin, json=asked).json()["jobs"]
    assert {job["_id"] for job in seen} == set(ids)
    wrong = ask(girder_stack, "POST", "dask/job/states", by=girder_user, json={"ids": [5]})
    assert wrong.status_code == 400


def test_a_scheduler_is_told_the_states_of_all_jobs(girder_stack, girder_user, girder_admin):
    job_id = girder_stack.call(start_waiting, user=girder_user)["id"]
    made = girder_admin.post(
        "api_key", parameters={"name": "states", "scope": '["dask.jobs.update"]'}
    )
    token = girder_admin.post("api_key/token", parameters={"key": made["key"]})
    asked = {"ids": [job_id]}
    seen = ask(
        girder_stack, "POST", "dask/job/states", token=token["authToken"]["token"], json=asked
    )
    assert [job["_id"] for job in seen.json()["jobs"]] == [job_id]
    # It may still not read what came of them.
    result = ask(
        girder_stack, "GET", f"dask/job/{job_id}/result", token=token["authToken"]["token"]
    )
    assert result.status_code == 401
    girder_admin.delete(f"api_key/{made['_id']}")


def test_the_dask_client_of_girder(girder_stack):
    def use() -> tuple[int, bool]:
        from girder_dask.client.backend import get_backend

        backend = get_backend()
        client = backend.dask_client()
        return client.submit(sum, [1, 2]).result(timeout=20), client is backend.dask_client()

    assert girder_stack.call(use) == (3, True)


def test_without_a_scheduler_there_is_no_dask_client(girder_stack):
    def use() -> str:
        from girder_dask.errors import SchedulerError
        from girder_dask.plugin.dask_client import LazyDaskClient

        told = []
        for address in (None, "tcp://127.0.0.1:1"):
            try:
                LazyDaskClient(lambda address=address: address).client()
            except SchedulerError as e:
                told.append(str(e))
        return "\n".join(told)

    told = girder_stack.call(use).splitlines()
    assert "Set dask.scheduler_address" in told[0]
    assert "tcp://127.0.0.1:1 does not answer" in told[1]


@pytest.mark.parametrize("user", ["admin", {}, 5])
def test_an_owner_that_is_no_user_is_refused(girder_stack, user):
    def start(owner: Any) -> str:
        from my_worker_tasks import noop

        return str(noop.delay(girder_user=owner).id)

    with pytest.raises(SubmissionError, match="not the document of a user"):
        girder_stack.call(start, user or {"login": "ada"})


def test_a_parent_given_as_text_is_found_by_its_id(girder_stack):
    def start() -> bool:
        from bson import ObjectId
        from girder_jobs.models.job import Job
        from my_worker_tasks import noop

        parent = noop.delay().job
        fields = {"parentId": str(parent["_id"])}
        child = noop.delay(girder_job_other_fields=fields).job
        found = Job().findOne({"parentId": ObjectId(parent["_id"])})
        return found is not None and str(found["_id"]) == str(child["_id"])

    assert girder_stack.call(start)


def test_what_many_jobs_returned_is_read_at_once(girder_stack, girder_user):
    own = start(girder_stack, call("my_worker_tasks:my_task", 1), by=girder_stack.admin)
    jobs = own + start(
        girder_stack, *(call("my_worker_tasks:make_bytes", 900_000) for _ in range(20))
    )
    ids = [job["_id"] for job in jobs]
    for job_id in ids:
        girder_stack.wait(job_id)
    body = {"ids": [*ids, "5f3c00000000000000000000", "none"]}
    first = ask(girder_stack, "POST", "dask/job/results", by=girder_stack.admin, json=body).json()
    assert 1 < len(first["results"]) < 21
    body = {"ids": first["left"]}
    rest = ask(girder_stack, "POST", "dask/job/results", by=girder_stack.admin, json=body).json()
    assert rest["left"] == []
    found = first["results"] | rest["results"]
    assert found.keys() == set(ids)
    assert all(kept["status"] == JobStatus.SUCCESS and kept["value"] for kept in found.values())
    others = ask(girder_stack, "POST", "dask/job/results", by=girder_user, json={"ids": ids}).json()
    assert others == {"results": {}, "left": []}
