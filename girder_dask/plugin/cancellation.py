"""The end of a job that somebody has asked for."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from bson import ObjectId
from girder_jobs.models.job import Job

from girder_dask.errors import GirderError
from girder_dask.jobs import FINAL, JobStatus
from girder_dask.plugin import records
from girder_dask.plugin.history import History
from girder_dask.plugin.updates import MOST_ROUNDS, publish, save, without_log

__all__ = ["cancel", "ended_by_others"]


def cancel(job_id: ObjectId) -> JobStatus | None:
    """Cancel a job.

    One that has not started is CANCELED at once, whether there is a scheduler or not. One
    that is at work is CANCELING until nothing of it runs any more. One that has ended
    stays as it is.

    Returns
    -------
    JobStatus or None
        The state that the job is in now, None if there is no such job.

    Raises
    ------
    GirderError
        If others change the job all the time.
    """
    for _ in range(MOST_ROUNDS):
        job = records.collection(Job()).find_one({"_id": job_id}, without_log)
        if job is None:
            return None
        status = JobStatus(job["status"])
        if status in FINAL or status == JobStatus.CANCELING:
            return status
        history = History(job)
        waits = status in (JobStatus.INACTIVE, JobStatus.QUEUED)
        history.advance(
            JobStatus.CANCELED if waits else JobStatus.CANCELING, datetime.now(timezone.utc)
        )
        # Until the scheduler surely knows, each claim of it is told again.
        history.dask["remind"] = True
        held, _ = save([history])
        if held:
            publish(held)
            return JobStatus(history.job["status"])
    raise GirderError(f"Job {job_id} is being changed by others all the time. Cancel it again.")


def ended_by_others(job: dict[str, Any]) -> bool:
    """Clean up after a job whose end came through Girder's own ``updateJob``.

    Returns
    -------
    bool
        Whether the scheduler is to be told.
    """
    if job["status"] not in FINAL or not job.get("dask", {}).get("open"):
        return False
    Job().collection.update_one(
        {"_id": job["_id"]},
        {"$unset": {"dask.open": True}, "$set": {"dask.remind": True}},
    )
    job["dask"].pop("open", None)
    records.clean([job["_id"]])
    return True
