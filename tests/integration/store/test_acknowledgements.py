"""Acknowledgements: a scheduler has a job."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from girder_dask.jobs import JobStatus
from tests.support.store_jobs import receive, update


def test_receipt_says_that_a_scheduler_has_a_job(girder):
    pushed, claimed = girder.record(2)
    soon = datetime.now(timezone.utc) + timedelta(minutes=1)  # too young to be claimed
    girder.job.collection.update_one({"_id": pushed.job["_id"]}, {"$set": {"created": soon}})
    assert [spec.id for spec in girder.store.claim("s", 10).specs] == [claimed.spec.id]
    verdicts = receive(girder, "s", (pushed.spec.id, 1), (claimed.spec.id, 1))
    assert verdicts == girder.store.Verdicts()
    for recorded in (pushed, claimed):
        dask = girder.load(recorded.spec.id)["dask"]
        assert dask["scheduler"] == "s"
        assert dask.keys().isdisjoint({"claim", "claimed"})
    long_ago = datetime.now(timezone.utc) - timedelta(minutes=5)
    girder.job.collection.update_many({}, {"$set": {"created": long_ago}})
    assert girder.store.claim("s", 10).specs == []
    # What comes after it is as before.
    girder.store.apply("s", [update(pushed.spec.id, 1, JobStatus.RUNNING)])
    assert receive(girder, "s", (pushed.spec.id, 1)) == girder.store.Verdicts()
    assert girder.status(pushed.spec.id) == JobStatus.RUNNING


def test_receipt_is_answered_with_what_the_scheduler_should_know(girder):
    mine, others, stopped, canceled, newer, deleted = girder.record(6)
    girder.store.apply("other", [update(others.spec.id, 1)])
    girder.store.apply("s", [update(stopped.spec.id, 1, JobStatus.RUNNING)])
    girder.store.cancel(stopped.job["_id"])
    girder.store.cancel(canceled.job["_id"])
    girder.store.apply("other", [update(newer.spec.id, 1, attempt=2)])
    girder.job.collection.delete_one({"_id": deleted.job["_id"]})
    everybody = (mine, others, stopped, canceled, newer, deleted)
    verdicts = receive(girder, "s", *((job.spec.id, 1) for job in everybody), ("nonsense", 1))
    assert sorted(verdicts.stale) == sorted([others.spec.id, newer.spec.id, "nonsense"])
    assert verdicts.gone == [deleted.spec.id]
    assert sorted(verdicts.cancel) == sorted([stopped.spec.id, canceled.spec.id])
    assert girder.load(mine.spec.id)["dask"]["scheduler"] == "s"
    assert girder.load(others.spec.id)["dask"]["scheduler"] == "other"
