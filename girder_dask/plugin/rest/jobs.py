"""The routes that start, watch and cancel jobs from outside Girder: ``dask/job``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from girder.api import access
from girder.api.describe import Description, autoDescribeRoute
from girder.api.rest import Resource
from girder.constants import AccessType, TokenScope
from girder.exceptions import AccessException, RestException
from girder_jobs.models.job import Job

from girder_dask.jobs import waits_for
from girder_dask.plugin.backend import GirderBackend
from girder_dask.plugin.rest import authorization, body_types, routes, submissions
from girder_dask.plugin.rest.body_parser import read_body_as, require_json
from girder_dask.plugin.rest.body_types import JobIdsBody, SubmissionsBody
from girder_dask.plugin.rest.routes import StoredJob
from girder_dask.plugin.store import job_records, results
from girder_dask.plugin.store.access.requester import Requester, identify, identify_reader
from girder_dask.plugin.store.maps import parents
from girder_dask.plugin.store.maps.recording import MapPiece
from girder_dask.protocol.messages import StoredResult
from girder_dask.protocol.names import SUBMIT_SCOPE
from girder_dask.protocol.request_limits import MAX_JOBS_PER_REQUEST
from girder_dask.protocol.wire_json import to_json

__all__ = ["JobRoutes", "mount"]

# Any user may send such a list, and a parsed list takes many times as much memory.
_MAX_ID_LIST_BYTES = 4 * 1024**2
# The most bytes of values and exceptions in one answer, which has at least one job.
_MAX_RESULTS_BYTES = 16 * 1024**2
_STATE_FIELDS = ("_id", "title", "status", "progress", "updated", "userId")


def mount(resource: Resource, backend: GirderBackend) -> None:
    """Add the routes to the resource ``dask``."""
    handlers = JobRoutes(backend)
    routes.add(resource, "POST", ("job",), handlers.submit)
    routes.add(resource, "POST", ("job", "states"), handlers.states)
    routes.add(resource, "GET", ("job", ":id", "result"), handlers.result)
    routes.add(resource, "POST", ("job", "results"), handlers.results)
    routes.add(resource, "PUT", ("job", ":id", "cancel"), handlers.cancel)


class JobRoutes:
    """The handlers of the routes."""

    def __init__(self, backend: GirderBackend) -> None:
        self._backend = backend

    @access.public(scope=SUBMIT_SCOPE)
    @autoDescribeRoute(
        Description("Start jobs on Dask.")
        .notes(
            "For `girder_dask.connect`, and for tasks that start others. Site administrators and "
            "members of the group `dask.submitters` may start any call. Other users may start the "
            "tasks of `dask.allow_tasks`, with plain arguments. A running job may start what its "
            "owner may, and if a plugin of Girder has started it, the tasks of its own package, "
            "with plain arguments. Girder never unpickles a call. The answer has the documents of "
            "the jobs, that of the group first. A request with a `key`, 32 hexadecimal digits, may "
            "be sent again when its answer was lost: it starts its jobs once. A request starts at "
            f"most {MAX_JOBS_PER_REQUEST:,} jobs. A larger group is sent in pieces: the first with "
            "the `group` and `more`, the others with the id of its job as `parent`, the number of "
            "jobs before them as `offset`, and `more` except for the last. Their answers have the "
            "`ids` of the jobs."
        )
        .param(**body_types.parameter(SubmissionsBody))
        .errorResponse("The body cannot be read.")
        .errorResponse("You may not start one of the jobs.", 403)
        .errorResponse("The group takes no more jobs.", 409)
        .errorResponse("The body is too large, or has too many jobs.", 413)
    )
    def submit(self) -> dict[str, Any]:
        """Record calls as jobs, and send them to the scheduler."""
        requester = identify()
        authorization.authorize(requester, ())  # before anything large is read
        require_json()
        body = read_body_as(SubmissionsBody)
        submissions.check_size(body)
        calls = submissions.read_submissions(body.submissions, requester)
        group = submissions.read_group(body.group, requester)
        authority = authorization.authorize(requester, calls, group)
        key = submissions.idempotency_key(body.key, requester)
        if body.parent is not None:
            parent = submissions.read_parent(body.parent, requester)
            piece = MapPiece(parent, calls, body.offset, is_last=not body.more)
            return {"ids": submissions.extend(self._backend, piece, key, authority)}
        jobs = submissions.record(
            self._backend, requester, calls, group, key, authority, more=body.more
        )
        shown = [Job().filter(job, requester.user) for job in jobs]
        for job in shown:
            job.pop("log", None)
        return {"jobs": shown}

    @access.public(scope=TokenScope.DATA_READ)
    @autoDescribeRoute(
        Description("Return the states of jobs.")
        .notes(
            "`dask.waits` is the reason why a job is pending, null if it only waits for its turn. "
            "The answer leaves out jobs that do not exist and those that you may not read. A "
            "scheduler may read all jobs."
        )
        .param(**body_types.parameter(JobIdsBody))
        .errorResponse("The body cannot be read.")
        .errorResponse("The token is not valid.", 401)
    )
    def states(self) -> dict[str, list[dict[str, Any]]]:
        """Return the states of many jobs in one request."""
        requester = identify_reader()
        ids = read_body_as(JobIdsBody, max_bytes=_MAX_ID_LIST_BYTES).ids
        # Access to the dependencies of a job was checked when it was recorded.
        allowed = _dependencies(requester)
        return {
            "jobs": [
                _state(job)
                for job in job_records.load_states(ids)
                if requester.is_scheduler
                or str(job["_id"]) in allowed
                or requester.may(job, AccessType.READ)
            ]
        }

    @access.public(scope=TokenScope.DATA_READ)
    @autoDescribeRoute(
        Description("Return the result of a job, or its exception.")
        .notes(
            "`value` and `exception` are packed by girder_dask, `error` is one line. All are null "
            "until the job has ended, and `value` if it is not stored. `parts` are the ids of the "
            "jobs under the parent job of a map, null for other jobs."
        )
        .modelParam("id", "The id of the job.", model=StoredJob, force=True)
        .errorResponse("ID was invalid.")
        .errorResponse("Read access was denied for the job.", 403)
    )
    def result(self, job: dict[str, Any]) -> dict[str, Any]:
        """Return the stored result of a job."""
        requester = identify()
        if str(job["_id"]) not in _dependencies(requester):
            requester.require(job, AccessType.READ)
        return _shown(job, results.load(job["_id"]))

    @access.public(scope=TokenScope.DATA_READ)
    @autoDescribeRoute(
        Description("Return the results or exceptions of many jobs.")
        .notes(
            "`results` has for each job what `GET dask/job/:id/result` returns. It leaves out jobs "
            "that do not exist and those that you may not read. `left` has the ids of those that "
            "did not fit into this answer."
        )
        .param(**body_types.parameter(JobIdsBody))
        .errorResponse("The body cannot be read.")
        .errorResponse("The token is not valid.", 401)
    )
    def results(self) -> dict[str, Any]:
        """Return the stored results of many jobs in one request."""
        requester = identify_reader()
        ids = read_body_as(JobIdsBody, max_bytes=_MAX_ID_LIST_BYTES).ids
        allowed = _dependencies(requester)
        jobs = {
            job["_id"]: job
            for job in job_records.load_states(ids)
            if str(job["_id"]) in allowed or requester.may(job, AccessType.READ)
        }
        shown: dict[str, Any] = {}
        size = 0
        for job_id, stored in results.load_many(jobs):
            size += len(stored.value or b"") + len(stored.exception or b"")
            if shown and size > _MAX_RESULTS_BYTES:
                return {"results": shown, "left": [i for i in ids if i not in shown]}
            shown[str(job_id)] = _shown(jobs[job_id], stored)
        return {"results": shown, "left": []}

    @access.public(scope=SUBMIT_SCOPE)
    @autoDescribeRoute(
        Description("Cancel a job and the jobs that it has started.")
        .notes(
            "As `PUT job/:id/cancel`, but also for keys that may only start jobs, and for a "
            "running job, which may cancel the jobs that it has started."
        )
        .modelParam("id", "The id of the job.", model=StoredJob, force=True)
        .errorResponse("ID was invalid.")
        .errorResponse("You may not cancel the job.", 403)
    )
    def cancel(self, job: dict[str, Any]) -> dict[str, Any]:
        """Cancel a job."""
        requester = identify()
        if requester.job is None:
            requester.require(job, AccessType.WRITE)
        elif not job_records.is_descendant(job, requester.job["_id"]):
            raise AccessException(
                f"Job {requester.job['_id']} has not started job {job['_id']}, so it may not "
                "cancel it."
            )
        try:
            canceled = Job().cancelJob(job)
        except (KeyError, TypeError, AttributeError) as e:
            # Girder and its plugins do not validate the document.
            raise RestException(
                f"Job {job['_id']} cannot be canceled, since its document is malformed. Its owner "
                "or an administrator can delete it."
            ) from e
        return {"_id": canceled["_id"], "status": canceled["status"]}


def _state(job: Mapping[str, Any]) -> dict[str, Any]:
    reason = waits_for(job) if isinstance(job.get("dask"), dict) else None
    return {**{name: job.get(name) for name in _STATE_FIELDS}, "dask": {"waits": reason or None}}


def _shown(job: Mapping[str, Any], result: StoredResult) -> dict[str, Any]:
    return {
        "status": job.get("status"),
        "value": to_json(result.value),
        "error": result.error,
        "exception": to_json(result.exception),
        "parts": parents.load_part_ids(job),
    }


def _dependencies(requester: Requester) -> set[str]:
    return (
        set() if requester.job is None else set(job_records.load_dependencies(requester.job["_id"]))
    )
