"""The route on which the run of an at-most-once task asks whether it may begin."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from girder.api import access
from girder.api.describe import Description, autoDescribeRoute
from girder.api.rest import Resource
from girder.constants import TokenScope
from girder.exceptions import AccessException, RestException
from girder_jobs.models.job import Job

from girder_dask.plugin.rest import routes
from girder_dask.plugin.rest.routes import StoredJob
from girder_dask.plugin.store import models
from girder_dask.plugin.store.access.requester import identify

__all__ = ["mount"]

_HTTP_CONFLICT = 409


def mount(resource: Resource) -> None:
    """Add the route to the resource ``dask``."""
    routes.add(resource, "POST", ("job", ":id", "begin"), begin)


@access.public(scope=TokenScope.DATA_READ)
@autoDescribeRoute(
    Description("Record that a run of a job calls its function now, and that no other run may.")
    .notes("For the running job itself. The same run may ask again.")
    .modelParam("id", "The id of the job.", model=StoredJob, force=True)
    .param("attempt", "The number of its attempt.", dataType="integer")
    .param("run", "The id of the run.")
    .param("worker", "The name of its worker.")
    .errorResponse("Another run has begun, or the attempt is over.", _HTTP_CONFLICT)
    .errorResponse("The request does not come from the running job.", 403)
)
def begin(job: dict[str, Any], attempt: int, run: str, worker: str) -> dict[str, Any]:
    """Record the start of a run, once for a job."""
    if not identify().has_token_of(job):
        raise AccessException(
            f"Only job {job['_id']} itself can begin its runs, while it is running."
        )
    begun = {"run": run, "attempt": attempt, "worker": worker, "time": datetime.now(timezone.utc)}
    jobs = models.collection(Job())
    is_free = [{"dask.begun": {"$exists": False}}, {"dask.begun.run": run}]
    taken = jobs.update_one(
        {"_id": job["_id"], "dask.attempt": {"$lte": attempt}, "$or": is_free},
        {"$set": {"dask.begun": begun}},
    )
    if not taken.matched_count:
        _refuse(jobs.find_one({"_id": job["_id"]}, {"dask": True}) or job, attempt)
    return {"attempt": attempt}


def _refuse(job: dict[str, Any], attempt: int) -> None:
    """Raise an error with the reason why a run may not begin."""
    begun = job["dask"].get("begun") if isinstance(job.get("dask"), dict) else None
    if not isinstance(begun, dict):
        raise RestException(
            f"Attempt {attempt} of job {job['_id']} is over, since its worker was taken for dead.",
            code=_HTTP_CONFLICT,
        )
    raise RestException(
        f"The task may run at most once, and attempt {begun.get('attempt')} started it on "
        f"{begun.get('worker')} at {_shown(begun.get('time'))}. How that attempt ended is "
        "unknown, so the task is not retried. Check what the attempt has written, and "
        "start a new job if needed.",
        code=_HTTP_CONFLICT,
    )


def _shown(time: Any) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC" if isinstance(time, datetime) else "an unknown time"
