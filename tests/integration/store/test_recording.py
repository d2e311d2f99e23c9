"""Recording jobs: their documents, and the jobs that Girder's own model creates."""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime, timedelta, timezone

import pytest

from girder_dask.errors import GirderError, SubmissionError
from girder_dask.jobs import HANDLER, JobStatus
from girder_dask.protocol.messages import StoredResult, Submission
from girder_dask.protocol.payload import open_call, pack_call


def test_recorded_job_has_the_fields_of_girders_own(girder):
    own = girder.job.createJob("Work", "dask", user=girder.user, handler="other", public=True)
    call = Submission(
        "pkg.mod:work",
        pack_call((), {}),
        package="pkg 1.0",
        args=[1, "GirderFileId('5')"],
        kwargs={"a.b": 1, "$c": 2},
        title="Work",
        public=True,
        user=girder.user,
        other_fields={"meta": {"x": 1}, "status": 3, "_id": "no", "dask": 1, "access": {}},
    )
    (recorded,) = girder.store.record([call])
    job = girder.load(recorded.spec.id)
    assert job.keys() - {"dask"} == girder.load(own["_id"]).keys() - {"jobInfoSpec"}
    assert job["status"] == JobStatus.QUEUED
    assert [t["status"] for t in job["timestamps"]] == [JobStatus.QUEUED]
    assert (job["handler"], job["public"], job["userId"]) == (
        HANDLER,
        True,
        girder.user["_id"],
    )
    assert job["access"] == girder.load(own["_id"])["access"]
    assert job["meta"] == {"x": 1}
    assert job["dask"]["attempt"] == 1
    assert job["dask"]["scheduler"] is None
    loaded = girder.job.load(job["_id"], user=girder.user, level=0)
    assert loaded["args"] == [1, "GirderFileId('5')"]
    assert loaded["kwargs"] == {"a.b": 1, "$c": 2} == recorded.job["kwargs"]


def test_arguments_that_the_database_cannot_hold_are_shown_as_text(girder):
    odd = {"big": 2**80, "set": {1}, 5: "key", "bad": "\ud800"}
    call = Submission("pkg.mod:work", b"x", args=[odd, 2**70], kwargs={"o": object()})
    (recorded,) = girder.store.record([call])
    shown = girder.load(recorded.spec.id)["args"]
    assert shown[1] == str(2**70)
    assert isinstance(shown[0], str)  # a key of it is no text


def test_fields_that_do_not_fit_are_refused_and_nothing_is_recorded(girder):
    good = Submission("pkg.mod:work", b"x")
    bad = Submission("pkg.mod:work", b"x", other_fields={"much": "x" * 5_000_000})
    with pytest.raises(SubmissionError, match="other_fields"):
        girder.store.record([good, bad])
    assert girder.job.collection.count_documents({}) == 0
    assert girder.token.collection.count_documents({}) == 0


def test_recording_that_fails_for_the_jobs_leaves_nothing(girder):
    girder.job.collection.create_index("once", unique=True, sparse=True, name="once")
    try:
        call = Submission("pkg.mod:work", b"x", other_fields={"once": 1})
        with pytest.raises(GirderError, match="None of them was recorded"):
            girder.store.record([call, call])
    finally:
        girder.job.collection.drop_index("once")
    for model in (girder.job, girder.dask_job, girder.payload, girder.token):
        assert model.collection.count_documents({}) == 0, model.name


def test_save_events_fire_for_each_job(girder):
    from girder import events

    seen = []

    def note(event):
        seen.append((event.name, "_id" in event.info))

    names = ["validate", "save", "save.created", "save.after"]
    for name in names:
        events.bind(f"model.job.{name}", "test", note)
    try:
        girder.record(2)
    finally:
        for name in names:
            events.unbind(f"model.job.{name}", "test")
    assert Counter(seen) == {
        ("model.job.validate", False): 2,
        ("model.job.save", False): 2,
        ("model.job.save.created", True): 2,
        ("model.job.save.after", True): 2,
    }


def test_recording_calls_no_handler_of_girder_workers_plugin(girder):
    """They take some requests to the database for each job, of which jobs on Dask need nothing."""
    from girder import events

    names = ["model.job.save", "model.job.save.after"]
    assert all("worker" in events._mapping[name] for name in names)
    others, theirs = [], []
    before = {name: events._mapping[name]["worker"] for name in names}
    for name in names:
        events.bind(name, "test", others.append)
        events._mapping[name]["worker"] = theirs.append
    try:
        girder.record(2)
    finally:
        for name in names:
            events.unbind(name, "test")
            events._mapping[name]["worker"] = before[name]
    assert [event.name for event in others].count("model.job.save.after") == 2
    assert len(others) == 4
    assert not theirs


def test_many_jobs_are_recorded_quickly(girder):
    started = time.thread_time()  # a busy machine takes longer, but does not compute more
    recorded = girder.store.record([Submission("pkg.mod:work", b"x", user=girder.user)] * 1000)
    assert time.thread_time() - started < 5
    assert len({r.spec.id for r in recorded}) == 1000
    assert len({r.spec.token for r in recorded}) == 1000


def test_job_made_by_girders_model_is_scheduled(girder):
    forged = {"result": b"forged", "error": None, "exception": None, "result_attempt": 9}
    job = girder.job.createJob(
        "Own",
        "dask",
        args=(1, 2),
        kwargs={"c": 3},
        user=girder.user,
        handler=HANDLER,
        otherFields={"dask": {"task": "pkg.mod:work"}, "dask_outcome": forged},
    )
    assert "jobInfoSpec" not in girder.load(job["_id"])
    assert girder.store.result(job["_id"]) == StoredResult()
    girder.job.scheduleJob(job)
    assert girder.store.result(job["_id"]) == StoredResult()
    assert job["status"] == girder.status(job["_id"]) == JobStatus.QUEUED
    old = {"$set": {"created": datetime.now(timezone.utc) - timedelta(seconds=10)}}
    girder.job.collection.update_one({"_id": job["_id"]}, old)
    (spec,) = girder.store.claim("s", 10).specs
    call = open_call(spec.payload)
    assert (spec.task, tuple(call.args), call.kwargs) == ("pkg.mod:work", (1, 2), {"c": 3})
    assert girder.job.load(job["_id"], force=True)["kwargs"] == {"c": 3}


def test_job_without_a_task_is_refused(girder):
    from girder.exceptions import ValidationException

    job = girder.job.createJob("Own", "dask", user=girder.user, handler=HANDLER)
    with pytest.raises(ValidationException, match="names no task"):
        girder.job.scheduleJob(job)
    assert girder.status(job["_id"]) == JobStatus.INACTIVE
    girder.job.cancelJob(job)
    assert girder.status(job["_id"]) == JobStatus.CANCELED


def test_job_is_scheduled_once(girder):
    from girder.exceptions import ValidationException

    fields = {"dask": {"task": "pkg.mod:work"}}
    job = girder.job.createJob("Own", "dask", handler=HANDLER, otherFields=fields)
    stale = girder.job.load(job["_id"], force=True)
    girder.job.scheduleJob(job)
    with pytest.raises(ValidationException, match="by another request"):
        girder.job.scheduleJob(stale)
    assert girder.left(job["_id"]) == {"record": True, "payload": 1, "tokens": 1}


def test_other_handlers_are_left_alone(girder):
    job = girder.job.createJob("Other", "x", handler="other", user=girder.user)
    girder.job.scheduleJob(job)
    assert girder.status(job["_id"]) == JobStatus.INACTIVE
    girder.job.updateJob(job, status=JobStatus.QUEUED)
    girder.job.cancelJob(job)
    assert girder.status(job["_id"]) == JobStatus.CANCELED
    assert "dask" not in girder.load(job["_id"])
