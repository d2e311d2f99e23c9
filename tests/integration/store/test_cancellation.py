"""Cancellation, and the removal of jobs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest

from girder_dask.jobs import FINAL, JobStatus
from girder_dask.protocol.messages import Submission
from girder_dask.protocol.payload import pack_call
from tests.support.store_jobs import update


def test_queued_job_is_canceled_at_once(girder):
    (recorded,) = girder.record()
    canceled = girder.job.cancelJob(girder.job.load(recorded.spec.id, force=True))
    assert canceled["status"] == girder.status(recorded.spec.id) == JobStatus.CANCELED
    assert girder.left(recorded.spec.id) == {"record": True, "payload": 0, "tokens": 0}
    # It never runs, and a scheduler that has it is told, by whatever it asks first.
    claim = girder.store.claim("s", 10)
    assert claim.specs == []
    assert claim.cancel == [recorded.spec.id]
    verdicts = girder.store.apply("s", [update(recorded.spec.id, 1, JobStatus.RUNNING)])
    assert verdicts.cancel == [recorded.spec.id]
    assert girder.status(recorded.spec.id) == JobStatus.CANCELED


def test_scheduler_is_asked_about_a_queued_job_that_it_has(girder):
    """Girder may not have heard yet that it is at work."""
    begins, waits, arrives, unsent = girder.record(4)
    for recorded in (begins, waits, arrives):
        girder.store.acknowledge("s", [(recorded.spec.id, 1)])
    asked = []

    def ask(ids):
        asked.append(list(ids))
        if ids == [begins.spec.id]:
            girder.store.apply("s", [update(ids[0], 1, JobStatus.RUNNING)])
        return [] if ids == [waits.spec.id] else ids

    cancel = girder.store.cancel
    assert cancel(begins.job["_id"], ask) == JobStatus.CANCELING
    assert cancel(waits.job["_id"], ask) == JobStatus.CANCELED
    assert cancel(arrives.job["_id"], ask) == JobStatus.CANCELING
    assert cancel(unsent.job["_id"], ask) == JobStatus.CANCELED
    assert asked == [[begins.spec.id], [waits.spec.id], [arrives.spec.id]]
    # It is reminded of what it has to do, but not of what it has done.
    reminded = {begins.spec.id, arrives.spec.id, unsent.spec.id}
    assert set(girder.store.claim("s", 10).cancel) == reminded
    states = [t["status"] for t in girder.load(begins.spec.id)["timestamps"]]
    assert states == [JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.CANCELING]


def test_job_that_is_handed_over_meanwhile_is_asked_about_as_well(girder):
    parent = girder.job.createJob(title="parent", type="t", user=girder.user)
    call = Submission("pkg.mod:work", pack_call((), {}))
    first, second = girder.store.record([call] * 2, girder.user, parent=parent["_id"])
    girder.store.claim_for_push("s", [first.spec.id])
    asked = []

    def ask(ids):
        asked.append(list(ids))
        girder.store.claim_for_push("s", [second.spec.id])
        return [second.spec.id]

    girder.store.cancel_children(parent["_id"], ask)
    assert asked == [[first.spec.id], [second.spec.id]]
    assert girder.status(first.spec.id) == JobStatus.CANCELED
    assert girder.status(second.spec.id) == JobStatus.CANCELING


def test_job_at_work_is_canceling_until_nothing_of_it_runs(girder):
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    girder.store.apply("s", [update(job_id, 1, JobStatus.RUNNING)])
    girder.job.cancelJob(girder.job.load(job_id, force=True))
    assert girder.status(job_id) == JobStatus.CANCELING
    assert girder.store.claim("s", 10).cancel == [job_id]
    assert girder.store.apply("s", [update(job_id, 2, log="on\n")]).cancel == [job_id]
    assert girder.store.apply("s", [update(job_id, 3, JobStatus.CANCELED)]).cancel == []
    assert girder.status(job_id) == JobStatus.CANCELED
    assert girder.log(job_id) == "on\n"


@pytest.mark.parametrize("end", sorted(FINAL))
def test_ended_job_is_not_canceled(girder, end):
    (recorded,) = girder.record()
    girder.store.apply("s", [update(recorded.spec.id, 1, JobStatus.RUNNING, end)])
    girder.job.cancelJob(girder.job.load(recorded.spec.id, force=True))
    assert girder.status(recorded.spec.id) == end


def test_cancel_and_start_at_once_agree(girder):
    jobs = girder.record(30)

    def start(r):
        girder.store.apply("s", [update(r.spec.id, 1, JobStatus.RUNNING)])

    with ThreadPoolExecutor(8) as pool:
        for r in jobs:
            pool.submit(start, r)
            pool.submit(girder.store.cancel, r.job["_id"])
    for r in jobs:
        states = [t["status"] for t in girder.load(r.spec.id)["timestamps"]]
        assert states in ([1, 5], [1, 2, 824])


def test_removal_leaves_only_a_reminder_for_a_while(girder):
    from girder_dask.plugin.store.cancellation import REMIND_PERIOD, collect_removals

    (recorded,) = girder.record()
    girder.job.remove(girder.job.load(recorded.spec.id, force=True))
    assert girder.left(recorded.spec.id) == {"record": True, "payload": 0, "tokens": 0}
    assert girder.store.claim("s", 10).specs == []
    assert girder.store.apply("s", [update(recorded.spec.id, 1)]).gone == [recorded.spec.id]
    # What is left says to schedulers that come later that the job is gone, and goes itself.
    record = girder.dask_job.collection.find_one({"_id": girder.object_id(recorded.spec.id)})
    assert set(record) == {"_id", "removed"}
    later = datetime.now(timezone.utc) + REMIND_PERIOD
    assert recorded.spec.id in collect_removals(later - timedelta(minutes=1))
    collect_removals(later + timedelta(minutes=1))
    assert girder.left(recorded.spec.id) == {"record": False, "payload": 0, "tokens": 0}


def test_job_that_somebody_else_ends_is_cleaned_up(girder):
    (recorded,) = girder.record()
    job = girder.job.load(recorded.spec.id, force=True)
    girder.job.updateJob(job, status=JobStatus.ERROR)
    assert girder.left(recorded.spec.id) == {"record": True, "payload": 0, "tokens": 0}
    assert girder.store.claim("s", 10).specs == []
