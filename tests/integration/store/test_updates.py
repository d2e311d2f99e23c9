"""Updates of schedulers, applied to the documents of jobs."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from girder_dask.errors import GirderError
from girder_dask.jobs import JobStatus
from tests.support.store_jobs import update


def test_states_have_the_times_at_which_they_happened(girder):
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    start = girder.load(job_id)["timestamps"][0]["time"].timestamp()
    girder.store.apply(
        "s",
        [
            update(
                job_id,
                1,
                (JobStatus.FETCHING_INPUT, start + 1),
                (JobStatus.RUNNING, start + 2.5),
                (JobStatus.SUCCESS, start + 2),  # another clock
                result=b"value",
            )
        ],
    )
    job = girder.load(job_id)
    assert [t["status"] for t in job["timestamps"]] == [1, 820, 2, 3]
    times = [t["time"].timestamp() - start for t in job["timestamps"]]
    assert times == pytest.approx([0, 1, 2.5, 2.5], abs=0.002)
    assert job["status"] == JobStatus.SUCCESS
    assert girder.store.result(job_id).value == b"value"
    assert girder.left(job_id) == {"record": True, "payload": 0, "tokens": 0}


def test_update_that_comes_twice_is_applied_once(girder):
    (recorded,) = girder.record()
    one = update(recorded.spec.id, 1, JobStatus.RUNNING, log="once\n")
    for _ in range(3):
        verdicts = girder.store.apply("s", [one, one])
        assert verdicts == girder.store.Verdicts()
    assert girder.log(recorded.spec.id) == "once\n"
    assert len(girder.load(recorded.spec.id)["timestamps"]) == 2


def test_other_schedulers_are_stale_and_old_attempts_passed_over(girder):
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    girder.store.apply("s", [update(job_id, 1, JobStatus.RUNNING)])
    assert girder.store.apply("t", [update(job_id, 9, log="no")]).stale == [job_id]
    girder.store.apply("s", [update(job_id, 1, JobStatus.QUEUED, attempt=2)])
    # Its own older attempt, in a request whose answer was lost, does not cost it the job.
    assert girder.store.apply("s", [update(job_id, 5, log="no")]).stale == []
    job = girder.load(job_id)
    assert (job["dask"]["attempt"], job["dask"]["sequence"]) == (2, 1)
    assert job["log"] == []


def test_job_that_is_not_there_is_gone(girder):
    nowhere = "5f3c00000000000000000000"
    assert girder.store.apply("s", [update(nowhere, 1, JobStatus.RUNNING)]).gone == [nowhere]


def test_illegal_states_are_left_out_and_their_log_is_kept(girder):
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    girder.store.apply("s", [update(job_id, 1, JobStatus.RUNNING, JobStatus.ERROR, error="why")])
    girder.store.apply("s", [update(job_id, 2, JobStatus.RUNNING, log="late\n")])
    assert girder.status(job_id) == JobStatus.ERROR
    assert girder.log(job_id) == "late\n"
    assert girder.store.result(job_id).error == "why"


def test_end_is_never_left_out(girder):
    recorded = girder.record_running()
    back = update(recorded.spec.id, 1, JobStatus.QUEUED)
    girder.store.apply("s", [back, update(recorded.spec.id, 2, JobStatus.SUCCESS)])
    states = [stamp["status"] for stamp in girder.load(recorded.spec.id)["timestamps"]]
    assert states[-3:] == [JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.SUCCESS]
    assert girder.status(recorded.spec.id) == JobStatus.SUCCESS


def test_bad_update_does_not_spoil_the_others(girder):
    bad, good = girder.record(2)
    nonsense = [
        update(bad.spec.id, 1, (77, time.time())),
        update(bad.spec.id, 2, (JobStatus.RUNNING, float("nan"))),
        update(bad.spec.id, 3, (JobStatus.RUNNING, 1e300)),
        update(bad.spec.id, 4, progress={"total": "many"}),
        update("not an id", 1, JobStatus.RUNNING),
    ]
    verdicts = girder.store.apply("s", [*nonsense, update(good.spec.id, 1, JobStatus.RUNNING)])
    assert verdicts.stale == ["not an id", bad.spec.id]
    assert girder.status(good.spec.id) == JobStatus.RUNNING
    assert girder.status(bad.spec.id) == JobStatus.QUEUED


def test_progress(girder):
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    girder.store.apply("s", [update(job_id, 1, JobStatus.RUNNING, progress={"total": 10})])
    girder.store.apply("s", [update(job_id, 2, progress={"current": 4, "message": "half"})])
    assert girder.load(job_id)["progress"] == {"total": 10.0, "current": 4.0, "message": "half"}


def test_update_that_the_database_refuses_for_a_moment_is_applied_later(girder, monkeypatch):
    from pymongo.collection import Collection
    from pymongo.errors import BulkWriteError

    full, other = (girder.record_running().spec.id for _ in range(2))
    write, failures = Collection.bulk_write, []

    def unreached(self, operations, **options):
        if self.name == "job" and len(failures) < most:
            failures.append(len(operations))
            error = {"index": 0, "code": 365, "errmsg": "TemporarilyUnavailable"}
            matched = write(self, operations[1:], **options).matched_count if operations[1:] else 0
            raise BulkWriteError({"writeErrors": [error], "nMatched": matched})
        return write(self, operations, **options)

    monkeypatch.setattr(Collection, "bulk_write", unreached)
    updates = [update(job_id, 1, JobStatus.SUCCESS, log="1\n") for job_id in (full, other)]
    most = 2
    girder.store.apply("s", updates)
    assert [girder.status(job_id) for job_id in (full, other)] == [JobStatus.SUCCESS] * 2
    assert girder.log(full) == girder.log(other) == "1\n"
    queued = girder.record()[0].spec.id
    most, failures[:] = 100, []
    with pytest.raises(GirderError, match="Send the updates again"):
        girder.store.apply("s", [update(queued, 1, JobStatus.RUNNING)])
    assert girder.status(queued) == JobStatus.QUEUED


def test_others_see_updates_and_may_prevent_them(girder):
    from girder import events

    seen, after = [], []

    def before(event):
        seen.append((event.info["params"]["status"], event.info["params"]["log"]))
        if event.info["params"]["status"] == JobStatus.ERROR:
            event.preventDefault()

    events.bind("jobs.job.update", "test", before)
    events.bind("jobs.job.update.after", "test", lambda e: after.append(e.info["job"]["status"]))
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    try:
        girder.store.apply("s", [update(job_id, 1, JobStatus.RUNNING, JobStatus.ERROR, log="x")])
    finally:
        events.unbind("jobs.job.update", "test")
        events.unbind("jobs.job.update.after", "test")
    assert (JobStatus.RUNNING, None) in seen
    assert (JobStatus.ERROR, "x") in seen
    assert after == [JobStatus.RUNNING]
    assert girder.status(job_id) == JobStatus.RUNNING


def test_handler_that_raises_does_not_hold_up_the_batch(girder):
    from girder import events

    def broken(event):
        raise ValueError("broken handler")

    for name in ("jobs.job.update", "jobs.job.update.after"):
        events.bind(name, "test", broken)
    (recorded,) = girder.record()
    try:
        girder.store.apply("s", [update(recorded.spec.id, 1, JobStatus.RUNNING)])
    finally:
        for name in ("jobs.job.update", "jobs.job.update.after"):
            events.unbind(name, "test")
    assert girder.status(recorded.spec.id) == JobStatus.RUNNING


def test_same_batch_from_two_requests_at_once_is_applied_once(girder):
    jobs = girder.record(20)
    batch = [update(r.spec.id, 1, JobStatus.RUNNING, JobStatus.SUCCESS, log="line\n") for r in jobs]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: girder.store.apply("s", batch), range(4)))
    for r in jobs:
        job = girder.load(r.spec.id)
        assert job["log"] == ["line\n"]
        assert [t["status"] for t in job["timestamps"]] == [1, 2, 3]


def test_images_are_recorded_by_name_up_to_a_number(girder):
    """Their names have dots, which are no keys of the database."""
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    girder.store.apply("s", [update(job_id, 1, JobStatus.RUNNING, images={"a.org/x:1": "old"})])
    more = {f"image{n}": "digest" for n in range(30)}
    girder.store.apply("s", [update(job_id, 2, images={"a.org/x:1": "new", **more})])
    images = girder.load(job_id)["dask"]["images"]
    assert images[:2] == [
        {"name": "a.org/x:1", "digest": "new"},
        {"name": "image0", "digest": "digest"},
    ]
    assert len(images) == 20
    girder.store.apply("s", [update(job_id, 3, JobStatus.SUCCESS)])
    assert girder.load(job_id)["dask"]["images"] == images
