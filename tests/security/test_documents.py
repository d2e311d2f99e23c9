"""Malformed documents in the database: they affect their own jobs, and no others."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import MapParent
from girder_dask.protocol.wire_json import to_json
from tests.support.deadline import until
from tests.support.rest_site import ask, call, read, start_waiting, submit

BAD = ["x", -1, 1.5, None, [], [1, "x"], {}, {"open": True}, True, 2**62, math.nan]
JOB_FIELDS = [
    *("status", "created", "updated", "timestamps", "progress", "log", "userId", "parentId"),
    *("access", "kwargs", "args", "title", "handler", "public"),
    *("dask", "dask.attempt", "dask.sequence", "dask.scheduler", "dask.waits", "dask.log_bytes"),
    *("dask.claimed", "dask.claim", "dask.remind", "dask.unreached", "dask.group", "dask.begun"),
    *("dask.task", "dask.lacked", "dask.package"),
    *("dask_log", "dask_log.tail", "dask_log.size", "dask_log.chunks", "dask_outcome"),
    *("dask_outcome.result", "dask_outcome.error", "dask_outcome.result_attempt", "dask_aside"),
]
RECORD_FIELDS = [
    *("task", "token", "own_token", "payload_bytes", "payload", "resources", "dependencies"),
    *("retries", "priority", "timeout", "isolation", "trusted", "title", "girder_api_url"),
    *("result", "error", "exception", "result_attempt", "removed"),
]
FORGED = [
    (collection, field, value)
    for collection, fields in (("job", JOB_FIELDS), ("dask_job", RECORD_FIELDS))
    for field in fields
    for value in BAD
]
GROUP = {"total": 3, "done": 0, "failed": 0, "canceled": 0, "open": True, "revision": 0}
GROUPS = [(field, value) for field in [*GROUP, "recording", "lost"] for value in BAD]


def plant(base_id: str, forged: list[Any], groups: list[Any]) -> list[str]:
    """Store copies of a job, each with one field that is wrong. Run it in Girder."""
    import copy
    from datetime import timedelta

    from bson import ObjectId
    from girder_jobs.models.job import Job

    from girder_dask.plugin.store.models import DaskJob

    def put(document: dict[str, Any], path: str, value: Any) -> None:
        *outer, last = path.split(".")
        for name in outer:
            document = document.setdefault(name, {})
        document[last] = copy.deepcopy(value)

    base = Job().collection.find_one({"_id": ObjectId(base_id)})
    base["created"] -= timedelta(minutes=1)
    base["updated"] -= timedelta(minutes=1)
    base["dask"].pop("claimed", None)
    record = DaskJob().collection.find_one({"_id": ObjectId(base_id)})
    jobs, records = [], []
    for n, (collection, path, value) in enumerate(forged):
        job, own = copy.deepcopy(base), copy.deepcopy(record)
        job["_id"] = own["_id"] = ObjectId()
        own["token"] = f"forged-{job['_id']}"
        if n % 2 and path != "dask.scheduler":  # half are those of a scheduler that is gone
            job["dask"]["scheduler"] = None
        put(job if collection == "job" else own, path, value)
        jobs.append(job)
        records.append(own)
    for path, value in groups:
        job = copy.deepcopy(base)
        job["_id"] = ObjectId()
        job["dask"] = {"task": "x", "group": {**GROUP}}
        put(job, f"dask.group.{path}", value)
        child = {**copy.deepcopy(base), "_id": ObjectId(), "parentId": [job["_id"]], "status": 3}
        child["dask"] = {"task": "x"}
        jobs += [job, child]
    jobs.append({"_id": ObjectId(), "dask": {"group": {"open": True}}})
    jobs.append({"_id": ObjectId(), "dask": {"open": True}, "status": 1})
    jobs.append({"_id": f"text-{ObjectId()}", "status": 1, "dask": {"open": True}})
    jobs.append({**copy.deepcopy(base), "_id": f"text-{ObjectId()}"})
    Job().collection.insert_many(jobs)
    DaskJob().collection.insert_many(records)
    return [str(job["_id"]) for job in jobs]


def remove(ids: list[str]) -> None:
    from bson import ObjectId
    from girder_jobs.models.job import Job

    from girder_dask.plugin.store.models import DaskJob

    both = [*ids, *(ObjectId(i) for i in ids if ObjectId.is_valid(i))]
    Job().collection.delete_many({"_id": {"$in": both}})
    DaskJob().collection.delete_many({"_id": {"$in": both}})


def find_left(ids: list[str]) -> list[str]:
    """Return the malformed jobs that are still open. Run it in Girder."""
    from bson import ObjectId
    from girder_jobs.models.job import Job

    from girder_dask.plugin.store import validation
    from girder_dask.plugin.store.updates import WITHOUT_LOG

    left = []
    objects = [ObjectId(i) for i in ids if ObjectId.is_valid(i)]
    for job in Job().collection.find({"_id": {"$in": objects}}, WITHOUT_LOG):
        dask = job["dask"] if isinstance(job.get("dask"), dict) else {}
        group = dask["group"] if isinstance(dask.get("group"), dict) else {}
        try:
            if dask.get("open") is True:
                validation.check_job(job)
            if group.get("open") is True:
                validation.check_map_parent(job)
        except validation.MalformedDocument as e:
            left.append(str(e))
    return left


def ended(ids: list[str]) -> list[dict[str, Any]]:
    from bson import ObjectId
    from girder_jobs.models.job import Job

    objects = [ObjectId(i) for i in ids if ObjectId.is_valid(i)]
    found = Job().collection.find({"_id": {"$in": objects}, "dask_aside.reason": {"$exists": True}})
    return [dict(job) for job in found]


class Site:
    """A Girder with forged documents, the scheduler's credential, and the owner of most of them."""

    def __init__(self, stack: Any) -> None:
        self.stack = stack
        self.user = stack.create_user()
        base = stack.call(start_waiting, user=self.user)
        stack.wait(base["id"], status=JobStatus.QUEUED)
        key = stack.credential_file.read_text().strip()
        answer = requests.post(f"{stack.api}/api_key/token", params={"key": key}, timeout=30)
        self.token = answer.json()["authToken"]["token"]
        self.scheduler = self._scheduler(base["id"])
        self.ids = stack.call(plant, base["id"], FORGED, GROUPS)

    def _scheduler(self, job_id: str) -> str:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            job = self.stack.call(read, "job", job_id)
            if job["dask"]["scheduler"]:
                return str(job["dask"]["scheduler"])
            time.sleep(0.1)
        raise AssertionError("the scheduler has not taken the job")

    def as_scheduler(self, route: str, **body: Any) -> requests.Response:
        body = {"scheduler": self.scheduler, **body}
        return ask(self.stack, "POST", f"dask/job/{route}", token=self.token, json=body)


@pytest.fixture(scope="module")
def site(girder_stack: Any) -> Iterator[Site]:
    site = Site(girder_stack)
    yield site
    girder_stack.call(remove, site.ids)


def test_claims_set_malformed_jobs_aside_and_go_on(site: Site) -> None:
    lacking: list[Any] = []
    deadline = time.monotonic() + 60
    while left := site.stack.call(find_left, site.ids):
        assert time.monotonic() < deadline, left
        answer = site.as_scheduler("claim", limit=10_000, after="", lacking=lacking)
        assert answer.status_code == 200, answer.text
        lacking = [held for held in answer.json()["held"] if held[0] in site.ids]
        time.sleep(0.5)
    aside = site.stack.call(ended, site.ids)
    assert len(aside) > 100
    for job in aside:
        assert job["status"] in (JobStatus.ERROR, JobStatus.SUCCESS, JobStatus.CANCELED)
        # Updates of the job may have come since.
        assert any("is malformed: its field" in str(text) for text in job["log"])
        assert job["timestamps"][-1]["time"]
        dask = job["dask"]
        assert not isinstance(dask, dict) or "open" not in dask


def test_doctor_hears_of_it(site: Site) -> None:
    def told() -> Any:
        site.as_scheduler("claim", limit=10)
        found = ask(site.stack, "GET", "dask/credential", token=site.token).json()["set_aside"]
        return found if found["number"] else None

    # The search for them rests between two claims.
    assert "is malformed" in until(told)["last"]


def test_jobs_and_maps_of_others_run(site: Site) -> None:
    admin = site.stack.admin
    (job,) = submit(site.stack, call("my_worker_tasks:noop"), by=admin).json()["jobs"]
    assert site.stack.wait(job["_id"])["status"] == JobStatus.SUCCESS
    calls = [call("my_worker_tasks:noop") for _ in range(3)]
    group = to_json(MapParent(title="All").to_wire())
    made = submit(site.stack, *calls, group=group, by=admin).json()["jobs"]
    assert site.stack.wait(made[0]["_id"])["status"] == JobStatus.SUCCESS


def test_updates_of_many_apply_to_those_that_are_sound(site: Site) -> None:
    good = site.stack.call(start_waiting, user=site.user)["id"]
    updates = [
        {"version": 1, "id": job_id, "attempt": 1, "sequence": 10**6, "log": "said\n"}
        for job_id in [*site.ids, good]
    ]
    nonsense = {"attempt": 2**70, "sequence": "x", "statuses": 5, "log": 5, "progress": "x"}
    nonsense |= {"result": 5, "error": ["x"], "exception": "x", "waits": {}, "version": 2}
    updates += [{**updates[-1], "sequence": 10**6 + 1, key: v} for key, v in nonsense.items()]
    updates.append({**updates[-1], "version": 1, "statuses": [[4, 1e300]], "error": "\ud800"})
    received = [[job_id, 1] for job_id in site.ids if len(job_id) == 24]
    answer = site.as_scheduler("updates", updates=updates, received=received)
    assert answer.status_code == 200, answer.text
    assert "said\n" in site.stack.job(good)["log"]


def test_states_and_results_leave_out_what_nobody_may_read(site: Site) -> None:
    good = site.stack.call(start_waiting, user=site.user)["id"]
    asked = {"ids": [*site.ids, good]}
    for who in ({"token": site.token}, {"by": site.user}, {"by": site.stack.admin}, {}):
        seen = ask(site.stack, "POST", "dask/job/states", json=asked, **who)
        assert seen.status_code == 200, seen.text
        seen.json()
        answer = ask(site.stack, "POST", "dask/job/results", json=asked, **who)
        assert answer.status_code == 200, answer.text
        assert (good in answer.json()["results"]) == ("by" in who)


@pytest.mark.parametrize("route", ["GET log", "GET result", "GET uploads", "PUT cancel"])
def test_each_route_answers_in_our_words(site: Site, route: str) -> None:
    method, name = route.split()
    codes = set()
    for job_id in site.ids[:: 7 if method == "GET" else 3]:
        answer = ask(site.stack, method, f"dask/job/{job_id}/{name}", by=site.stack.admin)
        codes.add(answer.status_code)
        assert answer.status_code < 500, (job_id, answer.text)
        if answer.status_code >= 400:
            assert "Error" not in answer.json()["message"]
    assert 200 in codes


def test_who_cancels_a_malformed_job_is_told_and_it_ends(site: Site) -> None:
    base = site.stack.call(start_waiting, user=site.user)["id"]
    for route in ("dask/job/{}/cancel", "job/{}/cancel"):
        forged = [("job", "dask.attempt", "first"), ("job", "timestamps", "never")]
        planted = site.stack.call(plant, base, forged, [])
        site.ids += planted
        ids = planted[: len(forged)]
        for job_id, field in zip(ids, ("dask.attempt", "timestamps"), strict=True):
            answer = ask(site.stack, "PUT", route.format(job_id), by=site.user)
            # The scheduler may have asked for jobs first.
            assert answer.status_code in (400, 200), answer.text
            assert answer.status_code == 200 or field in answer.json()["message"]
            assert site.stack.job(job_id)["status"] == JobStatus.ERROR


def test_the_owner_is_deleted_and_the_sound_jobs_end(site: Site) -> None:
    user = site.stack.create_user()
    base = site.stack.call(start_waiting, user=user)["id"]
    site.ids += site.stack.call(plant, base, FORGED[::9], GROUPS[::9])
    answer = ask(site.stack, "DELETE", f"user/{user.id}", by=site.stack.admin)
    assert answer.status_code == 200, answer.text
    assert site.stack.job(base)["status"] == JobStatus.CANCELED


def test_settings_and_status_answer(site: Site) -> None:
    admin = site.stack.admin
    assert ask(site.stack, "GET", "dask/status", by=site.user).status_code == 200
    params = {"key": "dask.direct_path", "value": "false"}
    try:
        assert ask(site.stack, "PUT", "system/setting", by=admin, params=params).status_code == 200
    finally:
        admin.delete("system/setting", parameters={"key": "dask.direct_path"})
