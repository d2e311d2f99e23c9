"""Acknowledgements of schedulers, and the jobs that each scheduler has acknowledged.

A scheduler acknowledges each queued job that it has received. Many acknowledgements are applied
with one write, without reading the jobs; only those of jobs that have changed meanwhile are applied
one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from bson import MinKey
from girder_jobs.models.job import Job

from girder_dask.jobs import JobStatus
from girder_dask.plugin.store import models, quarantine
from girder_dask.plugin.store.database import to_object_id
from girder_dask.plugin.store.updates import Verdicts, apply
from girder_dask.plugin.store.validation import check_position
from girder_dask.protocol.messages import JobUpdate

__all__ = ["acknowledge", "list_held"]


def acknowledge(scheduler: str, receipts: Iterable[tuple[str, int]]) -> Verdicts:
    """Record that a scheduler has received jobs, so that it need not claim them again.

    Parameters
    ----------
    scheduler
        The id of this run of the scheduler.
    receipts
        Pairs of a job id and the attempt that the scheduler has.

    Returns
    -------
    Verdicts
        The reply to the scheduler.

    Raises
    ------
    GirderError
        As :func:`girder_dask.plugin.store.updates.apply` does.
    """
    verdicts = Verdicts()
    by_attempt: defaultdict[int, list[str]] = defaultdict(list)
    for job_id, attempt in receipts:
        by_attempt[attempt].append(job_id)
    for attempt, job_ids in by_attempt.items():
        others = _acknowledge_queued(scheduler, attempt, job_ids)
        updates = [JobUpdate(id=job_id, attempt=attempt, sequence=0) for job_id in others]
        verdicts.merge(apply(scheduler, updates))
    return verdicts


def _acknowledge_queued(scheduler: str, attempt: int, job_ids: list[str]) -> list[str]:
    """Record the acknowledgement of jobs that are queued in this attempt; return the others."""
    ids = [found for job_id in job_ids if (found := to_object_id(job_id))]
    waiting = {"_id": {"$in": ids}, "status": int(JobStatus.QUEUED), "dask.attempt": attempt}
    # Jobs that show an unreachable scheduler need more than this write.
    plain: dict[str, Any] = {"dask.unreached": {"$exists": False}}
    matched = (
        Job()
        .collection.update_many(
            {**waiting, **plain, "dask.scheduler": {"$in": [None, scheduler]}},
            {
                "$set": {"dask.scheduler": scheduler},
                "$unset": {"dask.claim": True, "dask.claimed": True},
            },
            hint="_id_",  # the planner may prefer an index over very many jobs
        )
        .matched_count
    )
    if matched == len(job_ids):
        return []
    acknowledged = models.collection(Job()).find(
        {**waiting, **plain, "dask.scheduler": scheduler}, {"_id": True}
    )
    known = {str(job["_id"]) for job in acknowledged}
    return [job_id for job_id in job_ids if job_id not in known]


def list_held(scheduler: str, after: str, limit: int) -> list[tuple[str, int, int, int]]:
    """Return a page of the unfinished jobs that a scheduler has acknowledged.

    Parameters
    ----------
    scheduler
        The id of this run of the scheduler.
    after
        The id after which the page begins, empty for the first page.
    limit
        The most jobs of a page.

    Returns
    -------
    list of tuple
        Id, attempt, sequence and status of each job, in the order of the ids.
    """
    found: Any = models.collection(Job()).find(
        {
            "dask.open": True,
            "dask.scheduler": scheduler,
            "dask.claimed": None,
            "_id": {"$gt": to_object_id(after) or MinKey()},
        },
        {"dask.attempt": True, "dask.sequence": True, "status": True},
        sort=[("_id", 1)],
        limit=limit,
        hint=models.OPEN_INDEX,  # the index of ids would scan ended jobs too
    )
    jobs = quarantine.filter_valid(found, check_position)
    return [
        (str(job["_id"]), job["dask"]["attempt"], job["dask"]["sequence"], job["status"])
        for job in jobs
    ]
