"""What attempts of jobs leave in Girder, so that a new one replaces it.

The worker names its job and its attempt in headers. A file that comes with them is marked with
both. Files, artifacts and metadata are refused if Girder knows of a later attempt: a worker that
was thought dead, and comes back in the middle of an upload, must not add to what the new attempt
leaves.

Another header names the upload. By that a worker that got no answer can ask what became of it:
Girder makes an item, moves the content, makes the file, and forgets the upload, and it may die,
or lose its database, between any two of these steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cherrypy
from bson import ObjectId
from bson.errors import InvalidId
from girder import events
from girder.api import access
from girder.api.describe import Description, autoDescribeRoute
from girder.api.rest import Resource, getCurrentToken
from girder.constants import AccessType, TokenScope
from girder.exceptions import AccessException, GirderException, RestException
from girder.models.file import File
from girder.models.item import Item
from girder.models.upload import Upload
from girder_jobs.models.job import Job

from girder_dask.files.upload_recovery import Broken
from girder_dask.plugin.girder_events import EVENT_HANDLER
from girder_dask.plugin.rest import routes
from girder_dask.plugin.rest.routes import StoredJob
from girder_dask.plugin.store import models
from girder_dask.plugin.store.requester import identify
from girder_dask.protocol.names import ATTEMPT_HEADER, JOB_HEADER, UPLOAD_HEADER

__all__ = ["UPLOAD_INDEX", "bind", "ensure", "mount"]

#: The name of the index on files over those that jobs have uploaded.
UPLOAD_INDEX = "dask_uploads"

_CONFLICT = 409
_MOST_DIGITS = 18


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
    events.bind("rest.put.item/:id/metadata.before", EVENT_HANDLER, _check_metadata)
    events.bind("model.file.finalizeUpload.before", EVENT_HANDLER, _mark)
    events.bind("model.item.save", EVENT_HANDLER, _mark_item)


def mount(resource: Resource) -> None:
    """Add the route to the resource ``dask``."""
    routes.add(resource, "GET", ("job", ":id", "uploads"), list_uploads)
    routes.add(resource, "POST", ("job", ":id", "upload"), settle)


def _named() -> tuple[ObjectId | None, int] | None:
    """Return the job and the attempt that this request names. Old workers name no job."""
    attempt = cherrypy.request.headers.get(ATTEMPT_HEADER, "")
    job = cherrypy.request.headers.get(JOB_HEADER, "")
    if not (attempt.isdecimal() and attempt.isascii() and len(attempt) < _MOST_DIGITS):
        return None
    return ObjectId(job) if ObjectId.is_valid(job) else None, int(attempt)


def _uploader() -> tuple[dict[str, Any], int] | None:
    """Return the job at work that makes this request to upload a result, and its attempt."""
    named = _named()
    if named is None:
        return None
    job_id, attempt = named
    request = cherrypy.request
    if not hasattr(request, "dask_uploader"):  # several events of one request ask
        token = getCurrentToken()
        request.dask_uploader = None if token is None else models.running_job(token["_id"], job_id)
    job = request.dask_uploader
    return None if job is None else (job, attempt)


def _refuse_if_over(what: str) -> None:
    """Refuse what an attempt does that is over.

    The token proves nothing here: that of a job which has ended is known no more, and who names
    an attempt can only lose by it.
    """
    named = _named()
    if named is None:
        return
    job_id, attempt = named
    uploader = _uploader()
    job: dict[str, Any] | None = None if uploader is None else uploader[0]
    if job is None and job_id is not None:
        fields = {"dask.attempt": True, "dask.open": True}
        job = models.collection(Job()).find_one({"_id": job_id}, fields)
    dask = None if job is None else job.get("dask")
    if job is None or not isinstance(dask, dict) or not dask:
        return  # perhaps one of another Girder
    current = dask.get("attempt", 1)
    if not isinstance(current, int) or attempt < current:
        why = f"its worker was taken for dead, and a later attempt {what} in its place"
    elif not dask.get("open"):
        why = f"the job has ended, so it {what} no more"
    else:
        return
    raise RestException(f"Attempt {attempt} of job {job['_id']} is over: {why}.", code=_CONFLICT)


def _check(event: Any) -> None:
    """Refuse an upload of an attempt that is over, before anything comes of it.

    Else remove what broken uploads of earlier attempts have left where it goes: if their worker
    was lost as well as Girder, nobody has settled them.
    """
    _refuse_if_over(f"uploads {event.info['name']!r}")
    uploader = _uploader()
    if uploader is None:
        return
    job, attempt = uploader
    if attempt > 1 and event.info.get("parentType") == "folder":
        earlier = {"dask.job": job["_id"], "dask.attempt": {"$lt": attempt}}
        _remove_empty(Item().find({"folderId": event.info["parentId"], **earlier}))


@access.public  # the route itself asks for rights
def _check_metadata(_event: Any) -> None:
    """Refuse metadata of an attempt that is over."""
    _refuse_if_over("sets the metadata")


def _mark(event: Any) -> None:
    _mark_document(event.info["file"])


def _mark_item(event: Any) -> None:
    if "_id" not in event.info:
        _mark_document(event.info)


def _mark_document(document: dict[str, Any]) -> None:
    uploader = _uploader()
    if uploader is not None:
        job, attempt = uploader
        document["dask"] = {"job": job["_id"], "attempt": attempt}
        name = cherrypy.request.headers.get(UPLOAD_HEADER)
        if name:
            document["dask"]["upload"] = name


@access.public(scope=TokenScope.DATA_READ)
@autoDescribeRoute(
    Description("List the files that result hooks of a job have uploaded into folders and items.")
    .notes("For jobs at work, and those who may read the job. The oldest is the first.")
    .modelParam("id", "The id of the job.", model=StoredJob, force=True)
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
    if not requester.has_token_of(job):
        requester.require(job, AccessType.READ)
    query: dict[str, Any] = {"dask.job": job["_id"]}
    if before is not None:
        query["dask.attempt"] = {"$lt": before}
    files = list(File().find(query, sort=[("created", 1), ("_id", 1)]))
    wanted = {"_id": {"$in": [file.get("itemId") for file in files]}}
    items: Any = Item().find(wanted, fields=["folderId"])
    if not requester.runs(job) and not requester.may(job, AccessType.READ):
        items = Item().filterResultsByPermission(items, requester.user, AccessType.READ)
    folders = {item["_id"]: item["folderId"] for item in items}
    return [
        {
            "_id": file["_id"],
            "name": file["name"],
            "size": file.get("size"),
            "sha512": file.get("sha512"),
            "itemId": file["itemId"],
            "folderId": folders[file["itemId"]],
            "attempt": file["dask"].get("attempt"),
        }
        for file in files
        if file.get("itemId") in folders
    ]


@access.public(scope=TokenScope.DATA_WRITE)
@autoDescribeRoute(
    Description("Tell what became of an upload of a result whose answer did not come.")
    .notes(
        "For the job at work itself. `state` is `complete` if there is the file, `unchanged` if "
        "nothing has come of what was sent from the offset on, and else `nothing`: then all that "
        "there was of it is removed, and it has to begin anew."
    )
    .modelParam("id", "The id of the job.", model=StoredJob, force=True)
    .param("name", "What its requests have in the header Girder-Dask-Upload.")
    .param("folderId", "The folder that it is put into.", required=False)
    .param("uploadId", "The id of the upload, if it was begun.", required=False)
    .param("offset", "Where its last request began.", dataType="integer", required=False)
    .errorResponse("The request is not made by the job at work.", 403)
)
def settle(
    job: dict[str, Any], name: str, folderId: str | None, uploadId: str | None, offset: int | None
) -> dict[str, str]:
    """Settle an upload that broke."""
    requester = identify()
    if not requester.has_token_of(job):
        raise AccessException(f"Job {job['_id']} alone, while it is at work, settles its uploads.")
    mark = {"dask.job": job["_id"], "dask.upload": name}
    upload = None
    if uploadId:
        sender = requester.user["_id"] if requester.user else None
        upload = Upload().findOne({"_id": _object_id(uploadId), "userId": sender})
    state = Broken.NOTHING
    if File().findOne(mark) is not None:
        state = Broken.COMPLETE
        if upload is not None:
            Upload().remove(upload)
    elif upload is not None and offset is not None and _offset(upload) == offset:
        state = Broken.UNCHANGED
    else:
        if upload is not None:
            Upload().cancelUpload(upload)
        if folderId:
            left = Item().find({"folderId": _object_id(folderId), **mark})
            theirs = Item().filterResultsByPermission(left, requester.user, AccessType.WRITE)
            _remove_empty(theirs)
    return {"state": state.value}


def _object_id(text: str) -> ObjectId:
    try:
        return ObjectId(text)
    except InvalidId as e:
        raise RestException(f"{text!r} is no id.") from e


def _offset(upload: dict[str, Any]) -> int | None:
    """Return how much of an upload Girder has, None if its content was moved already."""
    try:
        return int(Upload().requestOffset(upload))
    except (OSError, GirderException):
        return None


def _remove_empty(items: Iterable[dict[str, Any]]) -> None:
    """Remove items that were made for a file, and have none."""
    for item in items:
        if File().findOne({"itemId": item["_id"]}) is None:
            Item().remove(item)
