"""The cancellation of the jobs of a large map, in steps that hold up no other request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

from bson import ObjectId
from girder_jobs.models.job import Job

from girder_dask.jobs import JobStatus
from girder_dask.plugin.girder_events import EVENT_HANDLER, is_bound
from girder_dask.plugin.metrics.counts import counts
from girder_dask.plugin.store import cancellation, job_records, models
from girder_dask.plugin.store.cancellation import AskScheduler
from girder_dask.plugin.store.database import batches
from girder_dask.plugin.store.maps import parents

__all__ = ["cancel_foreign", "cancel_some", "claimed_ids", "descendants"]

#: The most jobs that one step cancels: those that no scheduler has, and others.
UNCLAIMED_JOBS_PER_STEP = 5_000
OTHER_JOBS_PER_STEP = 1_000

_PAGE = 5_000


def claimed_ids(parent: ObjectId) -> Iterator[list[str]]:
    """Yield the ids of the unfinished jobs of a map that a scheduler has, in pages."""
    found = models.collection(Job()).find(
        {"parentId": parent, "dask.open": True, "dask.scheduler": {"$ne": None}}, {"_id": True}
    )
    for page in batches(found, _PAGE):
        yield [str(job["_id"]) for job in page]


def cancel_some(parent: ObjectId, ask: AskScheduler) -> int:
    """Cancel some of the jobs of a map that are neither ended nor canceled.

    Returns
    -------
    int
        The number of jobs that were canceled, 0 if there are none left.
    """
    ids = _ids({"parentId": parent, "status": int(JobStatus.QUEUED), "dask.scheduler": None})
    if ids and not is_bound("jobs.job.update.after", besides=EVENT_HANDLER):
        _cancel_unclaimed(ids)
        parents.recount_parents_of([{"parentId": parent, "status": JobStatus.CANCELED}] * len(ids))
        return len(ids)
    is_ours: list[dict[str, Any]] = [{"dask.open": True}, {"dask.group.open": True}]
    jobs = _uncanceled(parent, {"$or": is_ours})
    _, blocked = cancellation.cancel_jobs(jobs, ask)
    parents.recount_parents_of([{"parentId": parent}])
    return len(jobs) - len(blocked)


def cancel_foreign(parent: ObjectId) -> None:
    """Ask the handlers of other jobs of a map to cancel them."""
    foreign = {"dask.open": {"$ne": True}, "dask.group.open": {"$ne": True}}
    cancellation.cancel_jobs(_uncanceled(parent, foreign), lambda _ids: None)


def _uncanceled(parent: ObjectId, query: dict[str, Any]) -> list[dict[str, Any]]:
    unfinished = {"$nin": [*cancellation.FINAL_STATUSES, int(JobStatus.CANCELING)]}
    found = models.collection(Job()).find(
        {"parentId": parent, "status": unfinished, **query},
        {"status": True, "dask.open": True, "dask.group": True, "handler": True},
        limit=OTHER_JOBS_PER_STEP,
    )
    return list(found)


def _ids(query: dict[str, Any]) -> list[ObjectId]:
    found = models.collection(Job()).find(
        {"dask.open": True, **query}, {"_id": True}, limit=UNCLAIMED_JOBS_PER_STEP
    )
    return [job["_id"] for job in found]


def _cancel_unclaimed(ids: Sequence[ObjectId]) -> None:
    """Cancel jobs that no scheduler has, with one write. Users are notified of their parent."""
    now = datetime.now(timezone.utc)
    canceled = int(JobStatus.CANCELED)
    # Without the hint, the planner may choose the index over the states, which is slow.
    written = Job().collection.update_many(
        {
            "_id": {"$in": list(ids)},
            "status": int(JobStatus.QUEUED),
            "dask.scheduler": None,
            "dask.open": True,
        },
        {
            "$set": {"status": canceled, "updated": now},
            "$push": {"timestamps": {"status": canceled, "time": now}},
            "$unset": {"dask.open": True, "dask.waits": True, "dask.unreached": True},
        },
        hint=[("_id", 1)],
    )
    # A scheduler may have claimed some meanwhile.
    ended = list(
        models.collection(Job()).find(
            {"_id": {"$in": list(ids)}, "status": canceled}, {"dask.task": True}, hint=[("_id", 1)]
        )
    )
    tasks = [str((job.get("dask") or {}).get("task")) for job in ended]
    # Another process may have canceled some of them.
    counts.ended(tasks[: written.modified_count], JobStatus.CANCELED)
    job_records.purge_ended([job["_id"] for job in ended])


def descendants(parent: ObjectId) -> Iterator[ObjectId]:
    """Yield the jobs of a map that have started other jobs."""
    found = models.collection(Job()).find({"parentId": parent}, {"_id": True})
    for page in batches(found, _PAGE):
        query = {"parentId": {"$in": [job["_id"] for job in page]}}
        yield from models.collection(Job()).distinct("parentId", query)
