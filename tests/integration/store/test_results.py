"""The stored results and errors of jobs."""

from __future__ import annotations

import threading
from datetime import datetime, timezone

from girder_dask.jobs import JobStatus
from tests.support.store_jobs import update


def test_small_result_is_one_write_with_the_end_of_its_job(girder, monkeypatch):
    from girder_dask.plugin.store import results

    small, large, failed = girder.record(3)
    value = b"v" * (2 * results.MAX_INLINE_BYTES)
    kept = []
    monkeypatch.setattr(
        results,
        "store",
        lambda given, now, store=results.store: kept.append(given) or store(given, now),
    )
    girder.store.apply(
        "s",
        [
            update(small.spec.id, 1, JobStatus.RUNNING, JobStatus.SUCCESS, result=b"small"),
            update(large.spec.id, 1, JobStatus.RUNNING, JobStatus.SUCCESS, result=value),
            update(
                failed.spec.id, 1, JobStatus.RUNNING, JobStatus.ERROR, error="no", exception=b"e"
            ),
        ],
    )
    assert [[str(job_id) for job_id, _ in given] for given in kept] == [[large.spec.id]]
    found = [girder.store.result(job.spec.id) for job in (small, large, failed)]
    assert [(f.value, f.error, f.exception) for f in found] == [
        (b"small", None, None),
        (value, None, None),
        (None, "no", b"e"),
    ]
    ids = [girder.object_id(job.spec.id) for job in (small, large, failed)]
    assert results.load_errors(ids) == dict(zip(ids, (None, None, "no"), strict=True))
    job = girder.load(small.spec.id)
    assert job["dask_outcome"]["result"] == b"small"
    assert "dask_outcome" not in girder.job.filter(job, girder.user)


def test_results_of_many_jobs_take_two_queries(girder, monkeypatch):
    from girder_dask.client.backend import get_backend
    from girder_dask.plugin.store import models, results

    small, large, failed, waiting, *more = girder.record(30)
    value = b"v" * (2 * results.MAX_INLINE_BYTES)
    ends = [(small, {"result": b"small"}), (large, {"result": value}), (failed, {"error": "no"})]
    for recorded, end in ends:
        status = JobStatus.ERROR if "error" in end else JobStatus.SUCCESS
        girder.store.apply("s", [update(recorded.spec.id, 1, JobStatus.RUNNING, status, **end)])
    by_others = girder.job.createJob(title="by others", type="t", user=girder.user)
    ids = [recorded.job["_id"] for recorded in (small, large, failed, waiting, *more)]
    alone = {job_id: results.load(job_id) for job_id in [*ids, by_others["_id"]]}
    queries, here = [], threading.current_thread()
    real = models.collection

    def count(model):
        if threading.current_thread() is here:  # others look for what there is to do
            queries.append(model)
        return real(model)

    monkeypatch.setattr(models, "collection", count)
    assert dict(results.load_many([*ids, by_others["_id"]])) == alone
    assert len(queries) == 2
    assert [alone[job_id].value for job_id in ids[:4]] == [b"small", value, None, None]
    assert alone[ids[2]].error == "no"
    stored = get_backend().load_results([*map(str, ids), "5f3c00000000000000000000"])
    assert len(queries) == 4
    assert stored.keys() == set(map(str, ids))
    states = [JobStatus(stored[str(job_id)].status) for job_id in ids[:4]]
    assert states == [JobStatus.SUCCESS, JobStatus.SUCCESS, JobStatus.ERROR, JobStatus.QUEUED]


def test_result_of_the_newest_attempt_counts(girder):
    from girder_dask.plugin.store import results

    first, second = girder.record(2)
    now = datetime.now(timezone.utc)
    results.store(
        [(recorded.job["_id"], results.AttemptOutcome(1, b"one")) for recorded in (first, second)],
        now,
    )
    for recorded, value in ((first, b"two"), (second, b"v" * 10_000)):
        ends = (JobStatus.RUNNING, JobStatus.SUCCESS)
        news = update(recorded.spec.id, 1, *ends, attempt=2, result=value)
        girder.store.apply("s", [news])
        results.store([(recorded.job["_id"], results.AttemptOutcome(1, b"one, late"))], now)
        assert girder.store.result(recorded.spec.id).value == value


def test_result_that_no_document_holds_does_not_hold_up_others(girder):
    long, other = girder.record(2)
    large = update(
        long.spec.id,
        1,
        JobStatus.RUNNING,
        JobStatus.ERROR,
        result=b"r" * (20 << 20),
        error="e" * (20 << 20),
        exception=b"x" * (20 << 20),
        progress={"message": "m" * (20 << 20)},
    )
    ends = update(other.spec.id, 1, JobStatus.RUNNING, JobStatus.SUCCESS, result=b"r")
    girder.store.apply("s", [large, ends])
    assert girder.status(long.spec.id) == JobStatus.ERROR
    assert girder.status(other.spec.id) == JobStatus.SUCCESS
    assert girder.store.result(other.spec.id).value == b"r"
    kept = girder.store.result(long.spec.id)
    assert kept.value is None
    assert "20,971,520 bytes" in kept.error
    assert kept.exception is None
    assert len(girder.load(long.spec.id)["progress"]["message"]) == 10_000
