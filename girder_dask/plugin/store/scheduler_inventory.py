"""The page of jobs that a scheduler should have, by which it sees what it has lost."""

from __future__ import annotations

from typing import Any

from bson import MinKey, ObjectId
from girder_jobs.models.job import Job

from girder_dask.plugin.store import models, quarantine
from girder_dask.plugin.store.validation import check_position

__all__ = ["held"]


def held(scheduler: str, after: str, limit: int) -> list[tuple[str, int, int]]:
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
            "_id": {"$gt": ObjectId(after) if ObjectId.is_valid(after) else MinKey()},
        },
        {"dask.attempt": True, "dask.sequence": True},
        sort=[("_id", 1)],
        limit=limit,
        hint=models.OPEN_INDEX,  # not that of the ids, which goes over all jobs that there were
    )
    jobs = quarantine.sound(found, check_position)
    return [(str(job["_id"]), job["dask"]["attempt"], job["dask"]["sequence"]) for job in jobs]
