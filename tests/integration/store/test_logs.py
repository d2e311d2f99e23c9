"""The logs of jobs, in their documents and in chunks."""

from __future__ import annotations

import threading

from girder_dask.jobs import JobStatus
from tests.support.store_jobs import count_chunks, update, whole_log


def test_log_is_cut_with_a_mark(girder, monkeypatch):
    from girder_dask.plugin.store.logs import writer

    monkeypatch.setattr(writer, "MAX_DOCUMENT_LOG_BYTES", 10_000)
    monkeypatch.setattr(writer, "_MIN_CHUNK_BYTES", 1000)
    recorded = girder.record_running()
    job_id = recorded.spec.id
    mark = writer.cut_line(job_id)
    for n in range(1, 40):
        girder.store.apply("s", [update(job_id, n, log="ä" * 250)])
        girder.store.apply("s", [update(job_id, n, log="ä" * 250)])  # again
    log = girder.log(job_id)
    assert log.count(mark) == 1
    assert log.endswith(mark)
    assert 9_000 < len(log.encode()) <= 10_000 + len(mark)
    assert set(log.removesuffix(mark)) == {"ä"}
    assert whole_log(job_id) == "ä" * 250 * 39
    girder.store.apply("s", [update(job_id, 40, JobStatus.ERROR, log="Traceback\n")])
    assert girder.log(job_id).endswith("äTraceback\n")
    assert whole_log(job_id) == "ä" * 250 * 39 + "Traceback\n"
    assert "dask_log" not in girder.job.filter(girder.load(job_id), girder.user)
    assert 5 <= count_chunks(job_id) <= 20
    girder.job.remove(girder.job.load(job_id, force=True))
    assert count_chunks(job_id) == 0


def test_chunks_of_an_update_that_is_not_applied_are_deleted(girder, monkeypatch):
    from girder_dask.plugin.store.logs import chunks, writer

    monkeypatch.setattr(writer, "MAX_DOCUMENT_LOG_BYTES", 100)
    recorded = girder.record_running()
    job_id = recorded.spec.id
    girder.store.apply("s", [update(job_id, 1, log="x" * 200_000)])
    store, kept = chunks.store, []

    def store_and_interfere(documents):
        store(documents)
        if not kept:
            kept.append(len(documents))
            girder.job.collection.update_one(
                {"_id": girder.object_id(job_id)}, {"$set": {"status": int(JobStatus.CANCELING)}}
            )

    monkeypatch.setattr(chunks, "store", store_and_interfere)
    girder.store.apply("s", [update(job_id, 2, log="y" * 200_000)])
    assert kept == [1]
    assert whole_log(job_id) == "x" * 200_000 + "y" * 200_000
    assert count_chunks(job_id) == 2

    def store_and_remove(documents):
        store(documents)
        girder.job.collection.delete_one({"_id": girder.object_id(job_id)})

    monkeypatch.setattr(chunks, "store", store_and_remove)
    assert girder.store.apply("s", [update(job_id, 3, log="z" * 200_000)]).gone == [job_id]
    assert count_chunks(job_id) == 2  # not the third


def test_log_that_others_wrote_to_is_whole(girder, monkeypatch):
    from girder_dask.plugin.store.logs import writer

    monkeypatch.setattr(writer, "MAX_DOCUMENT_LOG_BYTES", 100)
    recorded = girder.record_running()
    job_id = recorded.spec.id
    girder.store.apply("s", [update(job_id, 1, log="1\n")])
    girder.job.updateJob(girder.job.load(job_id, force=True), log="of Girder\n")
    girder.store.apply("s", [update(job_id, 2, log="2" * 200)])
    assert whole_log(job_id) == "1\nof Girder\n" + "2" * 200


def test_document_that_takes_no_more_log_has_it_beside(girder):
    recorded = girder.record_running()
    job_id = recorded.spec.id
    girder.job.collection.update_one(
        {"_id": girder.object_id(job_id)}, {"$set": {"meta": {"large": "m" * (15 << 20)}}}
    )
    for n in (1, 2):
        girder.store.apply("s", [update(job_id, n, log=f"{n}" * (1 << 20))])
    girder.store.apply("s", [update(job_id, 3, JobStatus.RUNNING, JobStatus.SUCCESS, log="end\n")])
    assert girder.status(job_id) == JobStatus.SUCCESS
    assert whole_log(job_id) == "1" * (1 << 20) + "2" * (1 << 20) + "end\n"


def test_log_of_tiny_pieces_stays_within_a_document(girder):
    (recorded,) = girder.record()
    pieces = [update(recorded.spec.id, n, log="x") for n in range(1, 2001)]
    girder.store.apply("s", pieces)
    job = girder.load(recorded.spec.id)
    assert "".join(job["log"]) == "x" * 2000
    assert job["dask"]["log_bytes"] >= 2000 * 8  # what the array itself takes is counted


def test_text_that_is_no_unicode_is_logged(girder):
    (recorded,) = girder.record()
    girder.store.apply("s", [update(recorded.spec.id, 1, log="a\ud800b\0c")])
    assert girder.log(recorded.spec.id) == "a\\ud800b\0c"


def test_concurrent_updates_of_one_job_lose_no_line(girder):
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    girder.store.apply("s", [update(job_id, 1, JobStatus.RUNNING)])
    stop = threading.Event()

    def meddle():
        # Another process appends and sets fields through Girder's own model.
        while not stop.is_set():
            girder.job.updateJob(girder.job.load(job_id, force=True), progressMessage="other")

    other = threading.Thread(target=meddle)
    other.start()
    try:
        for n in range(2, 60):
            girder.store.apply("s", [update(job_id, n, log=f"{n}\n")])
    finally:
        stop.set()
        other.join()
    assert girder.log(job_id) == "".join(f"{n}\n" for n in range(2, 60))
