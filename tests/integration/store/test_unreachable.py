"""The reasons why jobs wait, among them that the scheduler is unreachable."""

from __future__ import annotations

from girder_dask.jobs import JobStatus
from tests.support.notices import listening
from tests.support.store_jobs import receive, update, waits


def test_job_in_the_queue_says_why_it_waits(girder):
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    girder.store.apply("s", [update(job_id, 1, pending_reason="no worker is there")])
    assert waits(girder, recorded) == "no worker is there"
    girder.store.apply("s", [update(job_id, 2, pending_reason="no worker is there")])
    girder.store.apply("s", [update(job_id, 3)])
    assert waits(girder, recorded) == "no worker is there"
    girder.store.apply("s", [update(job_id, 4, pending_reason="none has a GPU")])
    girder.store.apply("s", [update(job_id, 5, pending_reason="")])
    assert waits(girder, recorded) is None
    girder.store.apply("s", [update(job_id, 6, pending_reason="none has a GPU")])
    girder.store.apply("s", [update(job_id, 7, JobStatus.RUNNING)])
    assert waits(girder, recorded) is None
    assert girder.log(job_id).splitlines() == [
        "Waiting: no worker is there.",
        *["Waiting: none has a GPU."] * 2,
    ]


def test_only_a_job_in_the_queue_waits(girder):
    (recorded,) = girder.record()
    job_id = recorded.spec.id
    girder.store.apply(
        "s", [update(job_id, 1, JobStatus.RUNNING, pending_reason="no worker is there")]
    )
    assert waits(girder, recorded) is None
    girder.store.apply(
        "s", [update(job_id, 2, JobStatus.QUEUED, pending_reason="no worker is there")]
    )
    assert waits(girder, recorded) == "no worker is there"
    girder.store.cancel(recorded.job["_id"])
    assert girder.load(job_id)["dask"].keys().isdisjoint({"waits", "unreached"})
    assert girder.store.apply("s", [update(job_id, 3, pending_reason=5)]).stale == [job_id]


def test_scheduler_that_is_restarted_looks_anew(girder):
    (recorded,) = girder.record()
    girder.store.apply("old", [update(recorded.spec.id, 1, pending_reason="no worker is there")])
    girder.store.claim("new", 10)
    assert waits(girder, recorded) is None


def test_unreachable_reason_holds_until_a_scheduler_has_the_job(girder):
    from girder_dask.plugin.store.unreachable import clear_reason, write_reason

    new, held, speaking, running, ended = girder.record(5)
    girder.store.apply("silent", [update(held.spec.id, 1, pending_reason="none has a GPU")])
    girder.store.apply("loud", [update(speaking.spec.id, 1)])
    girder.store.apply("loud", [update(running.spec.id, 1, JobStatus.RUNNING)])
    girder.store.apply("loud", [update(ended.spec.id, 1, JobStatus.RUNNING, JobStatus.SUCCESS)])
    assert write_reason("nobody is there", active_schedulers=["loud"]) == 2
    assert write_reason("nobody is there", active_schedulers=["loud"]) == 0
    everybody = (new, held, speaking, running, ended)
    said = "nobody is there"
    assert [waits(girder, job) for job in everybody] == [said, said, None, None, None]

    assert clear_reason("loud") == 0
    assert clear_reason("silent") == 1
    assert waits(girder, held) is None
    # A claim alone is not enough: its answer may be lost.
    assert [spec.id for spec in girder.store.claim("loud", 1).specs] == [new.spec.id]
    assert waits(girder, new) == said
    girder.store.apply("loud", [update(new.spec.id, 1)])
    assert girder.load(new.spec.id)["dask"].keys().isdisjoint({"waits", "unreached"})


def test_unreachable_reason_written_meanwhile_is_removed(girder, monkeypatch):
    """An update that was computed before it is computed again, so that it takes it away."""
    from girder_dask.plugin.store import unreachable, updates

    (recorded,) = girder.record()
    real, marked = updates.chunks.store, []

    def mark_first(chunks):
        if not marked:
            marked.append(True)  # the marking itself comes here too
            assert unreachable.write_reason("nobody is there", [recorded.spec.id]) == 1
        real(chunks)

    monkeypatch.setattr(updates.chunks, "store", mark_first)
    girder.store.apply("s", [update(recorded.spec.id, 1, JobStatus.RUNNING)])
    job = girder.load(recorded.spec.id)
    assert marked
    assert job["status"] == JobStatus.RUNNING
    assert job["dask"].keys().isdisjoint({"waits", "unreached"})


def test_users_are_told_why_jobs_wait(girder, services):
    with listening(services, girder.user) as received:
        (recorded,) = girder.record()
        girder.store.apply("s", [update(recorded.spec.id, 1, pending_reason="no worker is there")])
        _, log, status = received(3, recorded.spec.id)
    assert [log["type"], status["type"]] == ["job_log", "job_status"]
    assert status["data"]["dask"]["waits"] == "no worker is there"
    assert status["data"]["status"] == JobStatus.QUEUED


def test_receipt_removes_the_unreachable_reason(girder):
    from girder_dask.plugin.store.unreachable import write_reason

    waiting, plain = girder.record(2)
    assert write_reason("nobody is there", [waiting.spec.id]) == 1
    assert waits(girder, waiting) == "nobody is there"
    verdicts = receive(girder, "s", (waiting.spec.id, 1), (plain.spec.id, 1))
    assert verdicts == girder.store.Verdicts()
    dask = girder.load(waiting.spec.id)["dask"]
    assert dask["scheduler"] == "s"
    assert dask.keys().isdisjoint({"waits", "unreached"})
