"""What jobs have uploaded into folders, so that a new attempt replaces it.

The worker names its attempt in a header. A file that comes with it is marked with the job and
the attempt, and is refused if Girder knows of a later one: a worker that was thought dead, and
comes back in the middle of an upload, must not add to what the new attempt leaves.
"""

from __future__ import annotations

from typing import Any

import cherrypy
from girder import events
from girder.api import access
from girder.api.describe import Description, autoDescribeRoute
from girder.api.rest import Resource, getCurrentToken
from girder.constants import AccessType, TokenScope
from girder.exceptions import RestException
from girder.models.file import File
from girder.models.item import Item
from girder_jobs.models.job import Job

from girder_dask.plugin import records
from girder_dask.plugin.notices import EVENT_HANDLER
from girder_dask.plugin.requester import identify
from girder_dask.traces import HEADER

__all__ = ["UPLOAD_INDEX", "bind", "ensure", "mount"]

#: The name of the index on files over those that jobs have uploaded.
UPLOAD_INDEX = "dask_uploads"

_CONFLICT = 409


def ensure() -> None:
    """Make the index."""
    File().ensureIndex(
        (
            [("dask.job", 1), ("created", 1)],
            {"name": UPLOAD_INDEX, "partialFilterExpression": {"dask.job": {"$exists": True}}},
        )
    )


def bind() -> None:
    """Bind the events."""
    events.bind("model.upload.finalize", EVENT_HANDLER, _check)
    events.bind("model.file.finalizeUpload.before", EVENT_HANDLER, _mark)


def mount(resource: Resource) -> None:
    """Add the route to the resource ``dask``."""
    resource.route("GET", ("job", ":id", "uploads"), list_uploads)


def _uploader() -> tuple[dict[str, Any], int] | None:
    """Return the job at work that makes this request to upload a result, and its attempt."""
    named = cherrypy.request.headers.get(HEADER, "")
    if not named.isdigit():
        return None
    token = getCurrentToken()
    job = None if token is None else records.running_job(token["_id"])
    return None if job is None else (job, int(named))


def _check(event: Any) -> None:
    """Refuse an upload of an attempt that is over, before anything comes of it."""
    uploader = _uploader()
    if uploader is None:
        return
    job, attempt = uploader
    now = job["dask"].get("attempt", 1)
    if attempt < now:
        raise RestException(
            f"Attempt {attempt} of job {job['_id']} is over, since its worker was taken for dead; "
            f"attempt {now} uploads {event.info['name']!r} in its place.",
            code=_CONFLICT,
        )


def _mark(event: Any) -> None:
    uploader = _uploader()
    if uploader is not None:
        job, attempt = uploader
        event.info["file"]["dask"] = {"job": job["_id"], "attempt": attempt}


@access.public(scope=TokenScope.DATA_READ)
@autoDescribeRoute(
    Description("List the files that result hooks of a job have uploaded into folders and items.")
    .notes("For jobs at work, and those who may read the job. The oldest is the first.")
    .modelParam("id", "The id of the job.", model=Job, force=True)
    .param(
        "before",
        "Leave out what this attempt and later ones have uploaded.",
        dataType="integer",
        required=False,
    )
    .errorResponse("Read access was denied for the job.", 403)
)
def list_uploads(job: dict[str, Any], before: int | None) -> list[dict[str, Any]]:
    """List what a job has uploaded, as far as it is still there."""
    requester = identify()
    if not requester.runs(job):
        requester.require(job, AccessType.READ)
    query: dict[str, Any] = {"dask.job": job["_id"]}
    if before is not None:
        query["dask.attempt"] = {"$lt": before}
    files = list(File().find(query, sort=[("created", 1), ("_id", 1)]))
    wanted = {"_id": {"$in": [file.get("itemId") for file in files]}}
    folders = {item["_id"]: item["folderId"] for item in Item().find(wanted, fields=["folderId"])}
    return [
        {
            "_id": file["_id"],
            "name": file["name"],
            "size": file.get("size"),
            "sha512": file.get("sha512"),
            "itemId": file["itemId"],
            "folderId": folders[file["itemId"]],
            "attempt": file["dask"]["attempt"],
        }
        for file in files
        if file.get("itemId") in folders
    ]
