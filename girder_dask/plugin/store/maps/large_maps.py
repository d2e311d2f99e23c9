"""Maps that are too large to be canceled within one request.

Their parent is marked, so that none of their jobs is claimed any longer. The jobs are canceled
afterwards, step by step (:mod:`girder_dask.plugin.map_cancellation`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from bson import ObjectId
from girder_jobs.models.job import Job

from girder_dask.jobs import JobStatus
from girder_dask.plugin.store import models

__all__ = [
    "LARGE_JOBS",
    "LEFT_BEHIND",
    "add_canceled",
    "claimable",
    "find_left_behind",
    "find_unfinished",
    "forget",
    "is_large",
    "leave_behind",
    "take_canceled",
    "work",
]

#: A map with more jobs is canceled step by step.
LARGE_JOBS = 1_000

# The states of a parent whose jobs must not start.
_STOPPING_STATUSES = [int(JobStatus.CANCELING), int(JobStatus.CANCELED)]

#: Set when there are maps to cancel in this process.
work = threading.Event()

# The maps that were canceled in this process, for its thread. They may end before it sees them.
_canceled: queue.SimpleQueue[ObjectId] = queue.SimpleQueue()

#: The field of the record of a deleted parent whose jobs are still to be canceled.
LEFT_BEHIND = "left_behind"


def is_large(job_id: ObjectId) -> bool:
    """Return True if a job is the parent of a map with more jobs than one request cancels."""
    jobs = models.collection(Job())
    if jobs.find_one({"_id": job_id, "dask.group": {"$exists": True}}, {"_id": True}) is None:
        return False
    return bool(jobs.count_documents({"parentId": job_id}, limit=LARGE_JOBS + 1) > LARGE_JOBS)


def add_canceled(job_id: ObjectId) -> None:
    """Have the jobs of a map canceled, and what they have started. Returns at once."""
    _canceled.put(job_id)
    work.set()


def take_canceled() -> list[ObjectId]:
    """Return the maps that were added since the last call."""
    taken = []
    while not _canceled.empty():
        taken.append(_canceled.get())
    return taken


def find_unfinished() -> list[ObjectId]:
    """Return the parents that are canceled and have not ended."""
    found = models.collection(Job()).find(
        {"dask.group.open": True, "status": int(JobStatus.CANCELING)}, {"_id": True}
    )
    return [job["_id"] for job in found]


def leave_behind(job_id: ObjectId) -> None:
    """Record that a parent is deleted before its jobs were canceled."""
    mark = {LEFT_BEHIND: True, "removed": datetime.now(timezone.utc)}
    models.DaskJob().collection.update_one({"_id": job_id}, {"$set": mark}, upsert=True)
    work.set()


def find_left_behind() -> list[ObjectId]:
    """Return the deleted parents whose jobs are still to be canceled."""
    records = models.collection(models.DaskJob())
    found = records.find({"removed": {"$exists": True}, LEFT_BEHIND: True}, {"_id": True})
    return [record["_id"] for record in found]


def forget(job_id: ObjectId) -> None:
    """Forget a deleted parent, whose jobs are canceled."""
    models.DaskJob().collection.delete_one({"_id": job_id, LEFT_BEHIND: True})


def _find_stopping(jobs: Iterable[Mapping[str, Any]]) -> set[ObjectId]:
    """Return which parents of these jobs are canceled maps, or deleted ones."""
    given = {parent for job in jobs if isinstance(parent := job.get("parentId"), ObjectId)}
    if not given:
        return set()
    canceled = models.collection(Job()).find(
        {
            "_id": {"$in": list(given)},
            "status": {"$in": _STOPPING_STATUSES},
            "dask.group": {"$exists": True},
        },
        {"_id": True},
        hint=[("_id", 1)],
    )
    deleted = models.collection(models.DaskJob()).find(
        {"_id": {"$in": list(given)}, LEFT_BEHIND: True}, {"_id": True}, hint=[("_id", 1)]
    )
    return {found["_id"] for cursor in (canceled, deleted) for found in cursor}


def claimable(jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the jobs that a scheduler may claim: not those of a canceled map that may yet start.

    They are canceled with the rest of their map. A job that is CANCELING is claimed, since the
    claim ends it if its scheduler is lost.
    """
    stopping = _find_stopping(job for job in jobs if job.get("status") != JobStatus.CANCELING)
    if not stopping:
        return list(jobs)
    work.set()
    return [
        job
        for job in jobs
        if job.get("status") == JobStatus.CANCELING or job.get("parentId") not in stopping
    ]
