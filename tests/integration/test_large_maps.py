"""Maps whose jobs are canceled step by step, and not within the request that cancels them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from girder_dask.jobs import JobStatus
from tests.support.fault_site import until

COUNT = 1_500


def start_map(count: int, **options: Any) -> str:
    """Start a map whose jobs no worker can run. Run it in Girder."""
    from my_worker_tasks import noop

    return str(noop.options(resources={"nowhere": 1}, **options).starmap([()] * count).id)


def record_map(count: int) -> str:
    """Record a map that is not sent to the scheduler, and that seems old. Run it in Girder."""
    from datetime import datetime, timedelta, timezone

    from girder_jobs.models.job import Job

    from girder_dask.plugin.store.maps.recording import record_map
    from girder_dask.protocol.messages import MapParent, Submission
    from girder_dask.protocol.payload import pack_call

    calls = [
        Submission("my_worker_tasks:noop", pack_call((), {}), resources={"nowhere": 1})
        for _ in range(count)
    ]
    parent, _ = record_map(MapParent("Unsent"), calls)
    before = datetime.now(timezone.utc) - timedelta(minutes=1)
    Job().collection.update_many({"parentId": parent["_id"]}, {"$set": {"created": before}})
    return str(parent["_id"])


def states_of(job_id: str) -> dict[str, int]:
    """Return how many jobs of a map are in each state. Run it in Girder."""
    from collections import Counter

    from bson import ObjectId
    from girder_jobs.models.job import Job

    found = Job().collection.find({"parentId": ObjectId(job_id)}, {"status": True})
    return dict(Counter(JobStatus(job["status"]).name for job in found))


def leftovers_of(job_id: str) -> dict[str, Any]:
    """Return what is stored of the jobs of a map besides their documents. Run it in Girder."""
    from bson import ObjectId
    from girder.models.token import Token
    from girder_jobs.models.job import Job

    from girder_dask.plugin.store.models import DaskJob

    ids = [job["_id"] for job in Job().collection.find({"parentId": ObjectId(job_id)})]
    one = Job().collection.find_one({"_id": ids[-1]})
    return {
        "tokens": Token().collection.count_documents({"dask_job": {"$in": ids}}),
        "calls": DaskJob().collection.count_documents(
            {"_id": {"$in": ids}, "payload_bytes": {"$gt": 0}}
        ),
        "open": Job().collection.count_documents({"_id": {"$in": ids}, "dask.open": True}),
        "states": [JobStatus(stamp["status"]).name for stamp in one["timestamps"]],
    }


def hold_canceler() -> None:
    """Have the thread wait that cancels the jobs of large maps. Run it in Girder."""
    import threading

    from girder_dask.plugin.map_cancellation import steps

    changed: Any = steps
    real = changed.real_claimed_ids = steps.claimed_ids
    gate = changed.gate = threading.Event()
    # What it asks first of each map.
    changed.claimed_ids = lambda parent: gate.wait(60) and real(parent)


def release_canceler() -> None:
    """Let that thread go on. Run it in Girder."""
    from girder_dask.plugin.map_cancellation import steps

    changed: Any = steps
    changed.claimed_ids = changed.real_claimed_ids
    changed.gate.set()


@contextmanager
def held_canceler(stack: Any) -> Iterator[None]:
    """Have the jobs of large maps stay as they are for a while."""
    stack.call(hold_canceler)
    try:
        yield
    finally:
        stack.call(release_canceler)


@pytest.fixture
def is_canceled(girder_stack: Any) -> Callable[[str], bool]:
    """Return a function that tells whether all jobs of a map are CANCELED."""
    return lambda job_id: set(girder_stack.call(states_of, job_id)) == {"CANCELED"}


@pytest.mark.parametrize("start", [start_map, record_map])
def test_cancel_answers_at_once_and_cancels_all_jobs(
    girder_stack: Any, is_canceled: Callable[[str], bool], start: Callable[..., str]
) -> None:
    parent = girder_stack.call(start, COUNT)
    with held_canceler(girder_stack):
        answers = [girder_stack.admin.put(f"job/{parent}/cancel") for _ in range(2)]
        states = girder_stack.call(states_of, parent)
    assert states == {"QUEUED": COUNT}, "the requests have not waited for the cancellation"
    assert {answer["status"] for answer in answers} <= {JobStatus.CANCELING, JobStatus.CANCELED}
    until(lambda: is_canceled(parent), 60)
    job = girder_stack.wait(parent)
    assert job["status"] == JobStatus.CANCELED
    assert job["dask"]["group"]["canceled"] == COUNT
    assert girder_stack.admin.put(f"job/{parent}/cancel")["status"] == JobStatus.CANCELED

    def is_cleaned_up() -> bool:
        found = girder_stack.call(leftovers_of, parent)
        return not (found["calls"] or found["tokens"])

    until(is_cleaned_up, 60)
    left = girder_stack.call(leftovers_of, parent)
    assert left == {"tokens": 0, "calls": 0, "open": 0, "states": ["QUEUED", "CANCELED"]}


def test_claim_leaves_out_the_jobs_of_a_canceled_map(
    girder_stack: Any, is_canceled: Callable[[str], bool]
) -> None:
    parent = girder_stack.call(record_map, COUNT)

    def claim(parent: str) -> tuple[int, bool]:
        from bson import ObjectId
        from girder_jobs.models.job import Job

        from girder_dask.plugin.store import claims
        from girder_dask.plugin.store.maps import large_maps

        Job().collection.update_one({"_id": ObjectId(parent)}, {"$set": {"status": 824}})
        is_woken = large_maps.work.is_set()
        specs = claims.claim("greedy", 200).specs
        ids = [ObjectId(spec.id) for spec in specs]
        its = {"_id": {"$in": ids}, "parentId": ObjectId(parent)}
        return Job().collection.count_documents(its), is_woken

    claimed, _ = girder_stack.call(claim, parent)
    assert claimed == 0
    until(lambda: is_canceled(parent), 60)
    girder_stack.wait(parent)


def test_cancel_ends_what_the_jobs_of_a_large_map_have_started(
    girder_stack: Any, is_canceled: Callable[[str], bool]
) -> None:
    parent = girder_stack.call(record_map, COUNT)

    def start_below(parent: str) -> str:
        from bson import ObjectId
        from girder_jobs.models.job import Job

        from girder_dask.client.backend import get_backend
        from girder_dask.protocol.messages import Submission
        from girder_dask.protocol.payload import pack_call

        child = Job().collection.find_one({"parentId": ObjectId(parent)})
        Job().collection.update_one({"_id": child["_id"]}, {"$set": {"status": 3}})
        call = Submission("my_worker_tasks:noop", pack_call((), {}), resources={"nowhere": 1})
        (job,) = get_backend().submit_for(None, child["_id"], [call], None)
        return str(job["_id"])

    below = girder_stack.call(start_below, parent)
    girder_stack.admin.put(f"job/{parent}/cancel")
    assert girder_stack.wait(below, 60)["status"] == JobStatus.CANCELED


def test_a_large_map_that_is_deleted_takes_along_what_has_not_run(
    girder_stack: Any, is_canceled: Callable[[str], bool]
) -> None:
    parent = girder_stack.call(record_map, COUNT)
    with held_canceler(girder_stack):
        girder_stack.admin.delete(f"job/{parent}")
        states = girder_stack.call(states_of, parent)
    assert states == {"QUEUED": COUNT}, "the request has not waited for the cancellation"
    until(lambda: is_canceled(parent), 60)

    def is_left(parent: str) -> bool:
        from bson import ObjectId

        from girder_dask.plugin.store.maps import large_maps

        return ObjectId(parent) in large_maps.find_left_behind()

    until(lambda: not girder_stack.call(is_left, parent))


def test_claim_ends_a_job_of_a_canceled_map_whose_scheduler_is_lost(girder_stack: Any) -> None:
    parent = girder_stack.call(record_map, 2)

    def claim(parent: str) -> list[int]:
        from bson import ObjectId
        from girder_jobs.models.job import Job

        from girder_dask.plugin.store import claims

        jobs = Job().collection
        is_lost = {"status": 824, "dask.scheduler": "lost"}
        jobs.update_one({"parentId": ObjectId(parent)}, {"$set": is_lost})
        jobs.update_one({"_id": ObjectId(parent)}, {"$set": {"status": 824}})
        claims.claim("greedy", 10_000)
        return [job["status"] for job in jobs.find({"parentId": ObjectId(parent)})]

    assert JobStatus.CANCELING not in girder_stack.call(claim, parent)
    assert girder_stack.wait(parent)["status"] == JobStatus.CANCELED
