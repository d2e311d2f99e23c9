"""Claims of schedulers, and jobs that are sent to them."""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import Submission
from girder_dask.protocol.payload import open_call
from tests.support.store_jobs import update


def test_claim_hands_over_all_that_is_needed(girder):
    (recorded,) = girder.record(resources={"GPU.0": 1.0}, retries=2, priority=7)
    (spec,) = girder.store.claim("s", 10).specs
    assert spec == recorded.spec
    assert open_call(spec.payload).kwargs == {"b": 2}
    assert girder.load(spec.id)["dask"]["scheduler"] == "s"
    assert girder.store.claim("s", 10).specs == []


def test_job_that_was_just_recorded_is_left_to_its_sender(girder, monkeypatch):
    from girder_dask.plugin.store import claims

    assert timedelta(0) < claims.PUSH_GRACE
    monkeypatch.setattr(claims, "PUSH_GRACE", timedelta(minutes=1))  # on a slow machine
    girder.store.record([Submission("pkg.mod:work", b"x")])
    assert girder.store.claim("s", 10).specs == []


def test_job_of_a_scheduler_that_was_restarted_is_a_new_attempt(girder):
    queued, running = girder.record(2)
    girder.store.claim("old", 10)
    girder.store.apply(
        "old", [update(queued.spec.id, 1), update(running.spec.id, 1, JobStatus.RUNNING)]
    )
    specs = {spec.id: spec for spec in girder.store.claim("new", 10).specs}
    assert {spec.attempt for spec in specs.values()} == {2}
    assert specs.keys() == {queued.spec.id, running.spec.id}
    assert specs[running.spec.id].payload == running.spec.payload
    job = girder.load(running.spec.id)
    assert [t["status"] for t in job["timestamps"]] == [1, 2, 1]
    assert "this is attempt 2" in girder.log(running.spec.id)
    # What the old one still says is not heard.
    late = update(running.spec.id, 2, JobStatus.SUCCESS, log="late")
    assert girder.store.apply("old", [late]).stale == [running.spec.id]
    assert girder.status(running.spec.id) == JobStatus.QUEUED


def test_canceling_job_whose_scheduler_is_gone_is_canceled(girder):
    (recorded,) = girder.record()
    girder.store.apply("old", [update(recorded.spec.id, 1, JobStatus.RUNNING)])
    girder.store.cancel(recorded.job["_id"])
    assert girder.status(recorded.spec.id) == JobStatus.CANCELING
    assert girder.store.claim("new", 10).specs == []
    assert girder.status(recorded.spec.id) == JobStatus.CANCELED
    assert girder.left(recorded.spec.id) == {"record": True, "payload": 0, "tokens": 0}


def test_concurrent_claims_hand_out_each_job_once(girder):
    jobs = girder.record(400)

    def claim_all(scheduler: str) -> list[tuple[str, str, int]]:
        taken = []
        while specs := girder.store.claim(scheduler, 37).specs:
            taken += [(scheduler, spec.id, spec.attempt) for spec in specs]
        return taken

    # Under one name, as two requests of one scheduler, so that nobody takes over.
    with ThreadPoolExecutor(6) as pool:
        taken = [t for many in pool.map(claim_all, ["s"] * 6) for t in many]
    assert Counter(job for _, job, _ in taken) == {r.spec.id: 1 for r in jobs}


def test_claims_of_several_schedulers_never_hand_out_an_attempt_twice(girder):
    jobs = girder.record(60)
    with ThreadPoolExecutor(4) as pool:
        claims = list(pool.map(lambda s: girder.store.claim(s, 60), ["a", "b", "c", "d"]))
    attempts = Counter((spec.id, spec.attempt) for claim in claims for spec in claim.specs)
    assert set(attempts.values()) == {1}
    assert {job for job, _ in attempts} == {r.spec.id for r in jobs}


def test_claim_whose_answer_was_lost_is_made_again(girder):
    (recorded,) = girder.record()
    girder.store.claim("s", 10)
    assert girder.store.claim("s", 10).specs == []
    long_ago = datetime.now(timezone.utc) - timedelta(minutes=5)
    girder.job.collection.update_many({}, {"$set": {"dask.claimed": long_ago}})
    (spec,) = girder.store.claim("s", 10).specs
    assert (spec.id, spec.attempt) == (recorded.spec.id, 1)
    # Once the scheduler has said that it has the job, it is not handed over again.
    girder.store.apply("s", [update(spec.id, 1)])
    assert "claimed" not in girder.load(spec.id)["dask"]
    assert girder.store.claim("s", 10).specs == []


def test_job_that_its_scheduler_lacks_is_a_new_attempt(girder):
    """As after a crash of the database, which has forgotten what it had acknowledged."""
    ended, stopped, running, handed = girder.record(4)
    girder.store.claim("s", 3)
    ids = [recorded.spec.id for recorded in (ended, stopped, running)]
    girder.store.apply("s", [update(job_id, 1, JobStatus.RUNNING) for job_id in ids])
    girder.store.cancel(stopped.job["_id"])
    girder.store.claim("s", 10)  # of this one the scheduler has not said that it has it
    query = {"_id": ended.job["_id"]}
    kept = [(girder.job.collection, query), (girder.dask_job.collection, query)]
    before = [collection.find_one(query) for collection, query in kept]
    girder.store.apply("s", [update(ended.spec.id, 2, JobStatus.SUCCESS)])
    assert [job_id for job_id, *_ in girder.store.list_held("s", "", 10)] == sorted(ids[1:])
    for (collection, query), document in zip(kept, before, strict=True):
        collection.replace_one(query, document, upsert=True)

    pages = [girder.store.list_held("s", "", 2)]
    pages.append(girder.store.list_held("s", pages[0][-1][0], 2))
    assert [job_id for page in pages for job_id, *_ in page] == sorted(ids)
    assert girder.store.list_held("s", pages[1][-1][0], 2) == []
    assert girder.store.list_held("another", "", 10) == []

    there = {girder.object_id(i): (attempt, n) for page in pages for i, attempt, n, _ in page}
    lacking = {i: there.get(i, (1, 0)) for i in (ended.job["_id"], stopped.job["_id"])}
    lacking[handed.job["_id"]] = (1, 0)
    (spec,) = girder.store.claim("s", 10, lacking).specs
    assert (spec.id, spec.attempt) == (ended.spec.id, 2)
    assert "The scheduler no longer had the job; this is attempt 2.\n" in girder.log(spec.id)
    assert girder.status(stopped.spec.id) == JobStatus.CANCELED
    assert girder.status(running.spec.id) == JobStatus.RUNNING
    # Who says so twice, as the answer was lost, gets it once. So does who says it late.
    assert girder.store.claim("s", 10, lacking).specs == []
    attempt = update(spec.id, 1, JobStatus.RUNNING, attempt=2)
    assert girder.store.apply("s", [attempt]) == girder.store.Verdicts()
    assert girder.store.claim("s", 10, lacking).specs == []
    # Nor does it open what has ended.
    girder.store.apply("s", [update(running.spec.id, 2, JobStatus.SUCCESS)])
    assert girder.store.claim("s", 10, {running.job["_id"]: (1, 1)}).specs == []
    assert girder.status(running.spec.id) == JobStatus.SUCCESS


def test_job_goes_to_one_scheduler_before_it_is_sent(girder):
    sent, claimed, ended, gone = (r.spec.id for r in girder.record(4))
    girder.store.apply("s", [update(ended, 1, JobStatus.RUNNING, JobStatus.SUCCESS)])
    girder.job.collection.delete_one({"_id": girder.object_id(gone)})
    later = datetime.now(timezone.utc) + timedelta(minutes=1)  # too young to be claimed
    girder.job.collection.update_one({"_id": girder.object_id(sent)}, {"$set": {"created": later}})
    assert [spec.id for spec in girder.store.claim("s", 10).specs] == [claimed]
    # A claim came first: the scheduler may have run it, and let go of it, by the time it is sent.
    assert girder.store.claim_for_push("s", [sent, claimed, ended, gone]) == {sent}
    assert girder.store.claim_for_push("t", [sent]) == set()
    assert girder.load(sent)["dask"]["scheduler"] == "s"
    assert girder.store.claim("s", 10).specs == []
    girder.store.apply("s", [update(sent, 1, JobStatus.RUNNING)])
    assert girder.load(sent)["dask"].keys() & {"claim", "claimed"} == set()


def test_job_that_was_sent_to_a_scheduler_that_is_lost_is_a_new_attempt(girder):
    """A run of it may have begun before the scheduler could say that it has the job."""
    (recorded,) = girder.record()
    assert girder.store.claim_for_push("old", [recorded.spec.id]) == {recorded.spec.id}
    (spec,) = girder.store.claim("new", 10).specs
    assert (spec.id, spec.attempt) == (recorded.spec.id, 2)


def test_job_that_was_not_sent_after_all_is_handed_over_again(girder):
    (recorded,) = girder.record()
    girder.store.claim_for_push("s", [recorded.spec.id])
    assert girder.store.claim("s", 10).specs == []
    long_ago = datetime.now(timezone.utc) - timedelta(minutes=5)
    girder.job.collection.update_many({}, {"$set": {"dask.claimed": long_ago}})
    (spec,) = girder.store.claim("s", 10).specs
    assert (spec.id, spec.attempt) == (recorded.spec.id, 1)


def test_job_is_claimed_or_sent_and_never_both(girder):
    jobs, push = [r.spec.id for r in girder.record(300)], girder.store.claim_for_push

    def send(start: int) -> list[str]:
        return [i for n in range(start, 300, 30) for i in push("s", jobs[n:][:10])]

    with ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(send, start) for start in (0, 10, 20)]
        claimed = pool.submit(
            lambda: [s.id for _ in range(9) for s in girder.store.claim("s", 40).specs]
        )
        taken = [i for each in [*sent, claimed] for i in each.result()]
    assert Counter(taken) == dict.fromkeys(jobs, 1)


def test_claims_are_limited_by_bytes(girder):
    big = Submission("pkg.mod:work", b"x" * 12 * 1024**2, user=girder.user)
    girder.store.record([big] * 4)
    girder.job.collection.update_many({}, {"$set": {"created": datetime(2020, 1, 1)}})  # noqa: DTZ001
    sizes = []
    while specs := girder.store.claim("s", 10).specs:
        sizes.append([len(spec.payload) for spec in specs])
    assert sizes == [[12 * 1024**2] * 2] * 2
    # 12 MiB do not fit a document of 8.
    assert girder.payload.collection.count_documents({}) == 8


def test_job_whose_call_is_lost_ends_in_error(girder):
    (recorded,) = girder.record()
    girder.dask_job.collection.update_many({}, {"$unset": {"payload": True}})
    assert girder.store.claim("s", 10).specs == []
    assert girder.status(recorded.spec.id) == JobStatus.ERROR
    assert "no longer has the call of this job" in girder.log(recorded.spec.id)


def test_claims_use_an_index(girder, monkeypatch):
    from girder_dask.plugin.store import claims, models, quarantine, unreachable

    recorded = girder.record(300)
    girder.store.claim("old", 100)
    girder.store.apply("old", [update(r.spec.id, 1, JobStatus.RUNNING) for r in recorded[:50]])
    girder.store.cancel(recorded[0].job["_id"])
    done = [update(r.spec.id, 2, JobStatus.SUCCESS) for r in recorded[10:40]]
    girder.store.apply("old", done)
    plans, here = [], threading.current_thread()

    class Spy:
        def __init__(self, collection):
            self._collection = collection

        def find(self, query, *args, **options):
            cursor = self._collection.find(query, *args, **options)
            if "_id" not in query and threading.current_thread() is here:
                plans.append(json.dumps(cursor.clone().explain()["queryPlanner"], default=str))
            return cursor

    real = models.collection
    monkeypatch.setattr(claims.models, "collection", lambda model: Spy(real(model)))
    monkeypatch.setattr(claims, "_next_renewal", {})
    monkeypatch.setattr(quarantine, "_next_scan", 0.0)
    girder.store.claim("new", 400)
    unreachable.write_reason("nobody is there")
    unreachable.clear_reason("new")
    names = {
        *(models.OPEN_INDEX, models.REMIND_INDEX, models.CLAIM_INDEX, models.MAP_PARENT_INDEX),
        models.UNREACHED_INDEX,
    }
    asked = [plan for plan in plans if "girder.job" in plan]
    assert len(asked) == 11
    for plan in asked:
        winner = plan[: plan.index('"rejectedPlans"')]
        assert "COLLSCAN" not in winner
        assert any(name in winner for name in names), winner
