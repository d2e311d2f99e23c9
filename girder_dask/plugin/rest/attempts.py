"""The route on which the run of an at-most-once task asks whether it may begin."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, NoReturn

from bson import ObjectId
from girder.api import access
from girder.api.describe import Description, autoDescribeRoute
from girder.api.rest import Resource
from girder.constants import TokenScope
from girder.exceptions import AccessException, RestException
from girder_jobs.models.job import Job

from girder_dask.plugin.rest import routes
from girder_dask.plugin.rest.routes import StoredJob
from girder_dask.plugin.store import models
from girder_dask.plugin.store.access.requester import is_run_of

__all__ = ["mount"]

_HTTP_CONFLICT = 409


def mount(resource: Resource) -> None:
    """Add the route to the resource ``dask``."""
    routes.add(resource, "POST", ("job", ":id", "begin"), begin)


@access.public(scope=TokenScope.DATA_READ)
@autoDescribeRoute(
    Description("Record that a run of a job calls its function now, and that no other run may.")
    .notes("For the running job itself. The same run may ask again.")
    .param("id", "The id of the job.", paramType="path")
    .param("attempt", "The number of its attempt.", dataType="integer")
    .param("run", "The id of the run.")
    .param("worker", "The name of its worker.")
    .errorResponse("Another run has begun, or the attempt is over.", _HTTP_CONFLICT)
    .errorResponse("The request does not come from the running job.", 403)
)
def begin(id: str, attempt: int, run: str, worker: str) -> dict[str, Any]:  # noqa: A002
    """Record the start of a run, once for a job.

    A run waits for the answer, so what is needed to refuse it is read only then.
    """
    if not is_run_of(id):
        _refuse_others(id)
    begun = {"run": run, "attempt": attempt, "worker": worker, "time": datetime.now(timezone.utc)}
    is_free = [{"dask.begun": {"$exists": False}}, {"dask.begun.run": run}]
    jobs, job_id = models.collection(Job()), ObjectId(id)
    taken = jobs.update_one(
        {"_id": job_id, "dask.open": True, "dask.attempt": {"$lte": attempt}, "$or": is_free},
        {"$set": {"dask.begun": begun}},
    )
    if not taken.matched_count:
        _refuse(jobs.find_one({"_id": job_id, "dask.open": True}, {"dask": True}), id, attempt)
    return {"attempt": attempt}


def _refuse(job: dict[str, Any] | None, job_id: str, attempt: int) -> NoReturn:
    """Raise an error with the reason why a run may not begin. ``job`` is None if it has ended."""
    if job is None:
        _refuse_others(job_id)
    begun = job["dask"].get("begun")
    if not isinstance(begun, dict):
        raise RestException(
            f"Attempt {attempt} of job {job_id} is over, since its worker was taken for dead.",
            code=_HTTP_CONFLICT,
        )
    raise RestException(
        f"The task may run at most once, and attempt {begun.get('attempt')} started it on "
        f"{begun.get('worker')} at {_shown(begun.get('time'))}. How that attempt ended is "
        "unknown, so the task is not retried. Check what the attempt has written, and "
        "start a new job if needed.",
        code=_HTTP_CONFLICT,
    )


def _refuse_others(job_id: str) -> NoReturn:
    """Raise the error of a request that does not come from a running job."""
    if StoredJob().load(job_id) is None:
        raise RestException(f"Invalid job id ({job_id}).")
    raise AccessException(f"Only job {job_id} itself can begin its runs, while it is running.")


def _shown(time: Any) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC" if isinstance(time, datetime) else "an unknown time"
