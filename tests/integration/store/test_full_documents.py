"""Jobs whose document has reached the largest size of the database."""

from __future__ import annotations

from girder_dask.jobs import HANDLER, JobStatus
from tests.support.store_jobs import count_chunks, fill, update


def test_job_whose_document_takes_nothing_more_ends(girder):
    full, other, ended = (girder.record_running().spec.id for _ in range(3))
    girder.store.apply("s", [update(ended, 1, JobStatus.SUCCESS, result=b"r")])
    fill(girder, full)
    fill(girder, ended)
    verdicts = girder.store.apply(
        "s",
        [
            update(full, 1, JobStatus.SUCCESS, log="x" * 100_000, result=b"r"),
            update(other, 1, JobStatus.SUCCESS),
            update(ended, 2, log="late\n"),
        ],
    )
    assert sorted(verdicts.stale) == sorted([full, ended])
    assert girder.status(full) == JobStatus.ERROR
    assert girder.status(other) == JobStatus.SUCCESS
    assert girder.status(ended) == JobStatus.SUCCESS
    assert "refuses further updates of this job" in girder.store.result(full).error
    assert girder.store.result(full).value is None
    assert girder.store.result(ended).value == b"r"
    assert count_chunks(full) == count_chunks(ended) == 0
    assert girder.left(full) == girder.left(other)


def test_job_whose_document_takes_nothing_more_can_be_canceled(girder):
    from girder_dask.client.backend import get_backend

    running, queued = girder.record_running().spec.id, girder.record()[0].spec.id
    made = girder.job.createJob("x", "t", handler=HANDLER, user=girder.user)
    for job_id in (running, queued, made["_id"]):
        fill(girder, job_id)
    backend, told = get_backend(), []
    backend.tell_canceled = told.extend
    try:
        for job_id in (running, queued, str(made["_id"])):
            backend.stop(girder.object_id(job_id))
    finally:
        del backend.tell_canceled
    assert girder.status(running) == JobStatus.ERROR  # and it is told to stop
    assert girder.status(queued) == girder.status(made["_id"]) == JobStatus.CANCELED
    assert told == [running, queued, str(made["_id"])]


def test_job_whose_document_takes_nothing_more_is_not_claimed_for_ever(girder):
    full = girder.record_running().spec.id
    fill(girder, full)
    assert girder.store.claim("another", 10).specs == []
    assert girder.status(full) == JobStatus.ERROR
    assert "refuses further updates of this job" in girder.store.result(full).error
