"""Receipts of jobs: what a scheduler has in hand, although nothing has happened to it yet.

There is one for each job that has to wait, so they are taken many at once, without a look at
the jobs. Only those that something has happened to are looked at one by one.
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
    """Note that a scheduler has jobs in hand, so that they are not handed over once more.

    Parameters
    ----------
    scheduler
        The id of this run of the scheduler.
    receipts
        Ids of jobs, and the attempts that it has.

    Returns
    -------
    Verdicts
        What the scheduler should know.

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
    """Note it of the jobs that wait; return the others."""
    ids = [found for job_id in job_ids if (found := to_object_id(job_id))]
    waiting = {"_id": {"$in": ids}, "status": int(JobStatus.QUEUED), "dask.attempt": attempt}
    # The reason why no scheduler has it is taken back with more than this.
    plain: dict[str, Any] = {"dask.unreached": {"$exists": False}}
    matched = (
        Job()
        .collection.update_many(
            {**waiting, **plain, "dask.scheduler": {"$in": [None, scheduler]}},
            {
                "$set": {"dask.scheduler": scheduler},
                "$unset": {"dask.claim": True, "dask.claimed": True},
            },
        )
        .matched_count
    )
    if matched == len(job_ids):
        return []
    noted = models.collection(Job()).find(
        {**waiting, **plain, "dask.scheduler": scheduler}, {"_id": True}
    )
    known = {str(job["_id"]) for job in noted}
    return [job_id for job_id in job_ids if job_id not in known]


def list_held(scheduler: str, after: str, limit: int) -> list[tuple[str, int, int]]:
    """Return jobs that a scheduler has said it has, and that have not ended.

    Parameters
    ----------
    scheduler
        The id of this run of the scheduler.
    after
        The id after which they begin, empty for the first.
    limit
        The most of them.

    Returns
    -------
    list of tuple
        Ids in order, each with the attempt and the sequence of the job.
    """
    found: Any = models.collection(Job()).find(
        {
            "dask.open": True,
            "dask.scheduler": scheduler,
            "dask.claimed": None,
            "_id": {"$gt": to_object_id(after) or MinKey()},
        },
        {"dask.attempt": True, "dask.sequence": True},
        sort=[("_id", 1)],
        limit=limit,
        hint=models.OPEN_INDEX,  # not that of the ids, which goes over all jobs that there were
    )
    jobs = quarantine.filter_valid(found, check_position)
    return [(str(job["_id"]), job["dask"]["attempt"], job["dask"]["sequence"]) for job in jobs]
