"""Addresses that get a job's token: operators and code in Girder set them, requests do not."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Scheduler
from distributed import Worker as DaskWorker

from girder_dask.cli.doctor import examine
from girder_dask.client.rest_backend import RestBackend
from girder_dask.errors import NotConnectedError, SubmissionError
from girder_dask.protocol.messages import JobSpec, Submission
from girder_dask.protocol.payload import pack_call
from girder_dask.protocol.wire_json import to_json
from girder_dask.scheduler_hooks import make_plugin
from girder_dask.testing.remote import pack, unpack
from girder_dask.transforms import GirderFileId
from tests.support.deadline import soon
from tests.support.local_girder import serving
from tests.support.rest_site import call, count_jobs, start_waiting, stored_token, submit
from tests.support.run_worker import Worker
from tests.unit.cli.test_doctor import SCHEDULER, WORKER, whole

EVIL = "http://127.0.0.1:9/api/v1"
#: What a client says of the address by which it has reached Girder.
FORGED = {
    "Host": "127.0.0.1:9",
    "X-Forwarded-Host": "127.0.0.1:9",
    "X-Forwarded-Proto": "http",
    "Forwarded": "host=127.0.0.1:9;proto=http",
    "Referer": EVIL,
    "Origin": "http://127.0.0.1:9",
}


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    found = Worker(tmp_path)
    yield found
    found.close()


# -- what Girder says ---------------------------------------------------------------------------


def without_settings(start: Any, *args: Any) -> dict[str, Any]:
    """Start a job in a Girder without a configured address, and return the recorded addresses."""
    import os

    from girder_dask.plugin import settings
    from girder_dask.plugin.store import job_records, models

    there = os.environ.pop("GIRDER_SETTING_DASK_API_URL", None)
    settings.clear_cache()
    try:
        job_id = start(*args)
        record = models.DaskJob().collection.find_one({"_id": job_id})
        (spec,) = job_records.load_specs([record], {job_id: 1})
    finally:
        if there is not None:
            os.environ["GIRDER_SETTING_DASK_API_URL"] = there
        settings.clear_cache()
    return {
        "spec": (spec.girder_api_url, spec.default_api_url),
        "record": [value for value in record.values() if isinstance(value, str)],
    }


def by_delay() -> Any:
    from my_worker_tasks import noop

    return noop.apply_async(resources={"nowhere": 1}).job["_id"]


def by_schedule() -> Any:
    from girder.api.rest import getCurrentUser
    from girder_jobs.models.job import Job

    dask = {"task": "my_worker_tasks:noop", "resources": {"nowhere": 1}, "api_url": "http://x"}
    job = Job().createJob(
        title="Scheduled",
        type="dask",
        handler="dask_handler",
        user=getCurrentUser(),
        otherFields={"dask": {**dask, "girder_api_url": "http://x"}},
    )
    Job().scheduleJob(job)
    return job["_id"]


def by_map() -> Any:
    from my_worker_tasks import add_one

    (first, _) = add_one.options(resources={"nowhere": 1}).map([1, 2]).results
    return first.job["_id"]


@pytest.mark.parametrize("start", [by_delay, by_map, by_schedule])
def test_the_host_of_a_request_is_no_address(girder_stack, girder_user, start):
    answer = girder_user.client.post(
        "dask/testing/call",
        headers=FORGED,
        json={
            "secret": girder_stack._secret,
            "call": base64.b64encode(pack(without_settings, [start], {})).decode(),
        },
    )
    told = unpack(base64.b64decode(answer["outcome"]))
    assert told["spec"] == (None, None)
    assert not [text for text in told["record"] if "127.0.0.1:9" in text or "http" in text]


def test_an_address_that_was_recorded_from_a_request_before_is_not_believed(girder_stack):
    def forged(job_id: str) -> Any:
        from bson import ObjectId

        from girder_dask.plugin import settings
        from girder_dask.plugin.store import job_records, models

        known = models.DaskJob().collection
        known.update_one({"_id": ObjectId(job_id)}, {"$set": {"api_url": "http://127.0.0.1:9"}})
        record = known.find_one({"_id": ObjectId(job_id)})
        (spec,) = job_records.load_specs([record], {ObjectId(job_id): 2})
        return spec.to_wire(), settings.default_api_url()

    job = girder_stack.call(start_waiting)
    wire, default = girder_stack.call(forged, job["id"])
    assert default == girder_stack.api
    assert [v for k, v in wire.items() if "url" in k] == [default]


def test_nobody_names_an_address_over_rest(girder_stack, girder_user, girder_admin):
    parent = girder_stack.call(start_waiting)
    for who in ({"by": girder_user}, {"by": girder_admin}, {"token": parent["token"]}):
        before = girder_stack.call(count_jobs, girder_admin.get("user/me")["_id"])
        answer = submit(girder_stack, call(api_url=EVIL), **who)
        assert answer.status_code == 400
        assert "`$.api_url`" in answer.json()["message"]
        assert "where Girder is" in answer.json()["message"]
        assert girder_stack.call(count_jobs, girder_admin.get("user/me")["_id"]) == before


def test_a_child_has_the_address_that_code_in_girder_gave(girder_stack, girder_user):
    """The child could not reach Girder otherwise. Its request cannot set the address."""

    def start(url: str) -> str:
        from my_worker_tasks import noop

        return str(noop.apply_async(girder_api_url=url, resources={"nowhere": 1}).id)

    def address(job_id: str) -> Any:
        from bson import ObjectId

        from girder_dask.plugin.store.models import DaskJob

        return DaskJob().collection.find_one({"_id": ObjectId(job_id)})["girder_api_url"]

    inside = "http://inside.example.org/api/v1"
    given = girder_stack.call(start, inside, user=girder_user)
    token = girder_stack.call(stored_token, given)
    waits = {"resources": {"nowhere": 1}}
    (child,) = submit(girder_stack, call(**waits), token=token).json()["jobs"]
    assert girder_stack.call(address, child["_id"]) == inside
    other = girder_stack.call(start_waiting, user=girder_user)
    (child,) = submit(girder_stack, call(**waits), token=other["token"]).json()["jobs"]
    assert girder_stack.call(address, child["_id"]) is None


# -- outside of Girder --------------------------------------------------------------------------


def test_a_notebook_that_names_an_address_is_told_so_and_sends_nothing():
    backend = RestBackend("http://127.0.0.1:9/api/v1", token="SECRET", retry_time_s=0.0)
    with pytest.raises(SubmissionError, match=r"m:f was started with girder_api_url=.*No job was"):
        backend.submit([Submission("m:f", b"j", api_url=EVIL)])


# -- the worker ---------------------------------------------------------------------------------


def test_the_order_of_addresses(worker):
    places = ("own", "given", "scheduler", "settings")
    for known in itertools.product((True, False), repeat=4):
        url = {p: p if there else None for p, there in zip(places, known, strict=True)}
        worker.context.api_url = url["own"]
        worker.context.scheduler_api_url = url["scheduler"]
        addresses = {"girder_api_url": url["given"], "default_api_url": url["settings"]}
        spec = JobSpec(id="a", attempt=1, task="m:f", **addresses)
        expected = next((place for place, there in zip(places, known, strict=True) if there), None)
        assert worker.context.girder_of(spec) == expected


def test_an_address_in_the_field_of_another_version_is_left_out():
    wire = {**JobSpec(id="a", attempt=1, task="m:f").to_wire(), "api_url": EVIL}
    assert EVIL not in JobSpec.from_wire(wire).to_wire().values()


def test_without_any_address_the_job_says_what_to_set(worker):
    def work() -> str:
        from my_worker_tasks import noop

        try:
            noop.delay()
        except NotConnectedError as e:
            return str(e)
        return "started"

    said = worker.outcome(work, token="SECRET")
    for text in (said, worker.log()):
        assert "girder.api-url" in text
        assert "core.server_root" in text
    assert "notebook" not in said


def test_doctor_tells_of_a_worker_that_knows_no_address():
    lost = whole(workers={"tcp://w:1": {**WORKER, "api_url": None}})
    (check,) = [check for check in examine(lost) if not check.ok]
    assert check.name == "Worker tcp://w:1 reaches Girder"
    assert check.problem == "no setting has its address"
    assert "girder.api-url" in str(check.remedy)
    alone = whole(scheduler={**SCHEDULER, "api_url": None})
    assert "girder.api-url is not set there" in [c.problem for c in examine(alone)]


async def test_workers_without_a_setting_send_tokens_where_the_scheduler_does(monkeypatch):
    """The scheduler, the worker and the request for a file are real here."""
    monkeypatch.delenv("GIRDER_WORKER_API_URL", raising=False)
    with serving() as girder, serving() as attacker:
        spec = JobSpec(
            id="5f3c5f3c5f3c5f3c5f3c5f3c",
            attempt=1,
            task="my_worker_tasks:my_task",
            payload=pack_call((GirderFileId("5f3c5f3c5f3c5f3c5f3c5f3d"),), {}),
            token="SECRET",
            default_api_url=attacker.url,
        )
        specs = [to_json({**spec.to_wire(), "api_url": attacker.url})]
        girder.answers |= {
            "POST api_key/token": (200, {"authToken": {"token": "t"}}),
            "POST dask/job/claim": lambda _: (200, {"specs": given(), "cancel": []}),
            "POST dask/job/updates": (200, {}),
        }

        def given() -> list[Any]:
            found = specs[:]
            specs.clear()
            return found

        with dask.config.set({"girder.scheduler.pull-interval": "100 ms"}):
            async with Scheduler(port=0, dashboard_address=":0") as scheduler:
                plugin = make_plugin(girder.url, "the-key")
                scheduler.add_plugin(plugin)
                await plugin.start(scheduler)
                async with DaskWorker(scheduler.address, nthreads=1):
                    await soon(lambda: any("file/" in what for what in girder.asked))
        asked = [h for w, h in zip(girder.asked, girder.headers, strict=True) if "file/" in w]
        assert asked[0]["Girder-Token"] == "SECRET"
        assert attacker.asked == []
