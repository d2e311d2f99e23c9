"""The routes for what jobs upload: ``dask/job/:id/uploads`` and ``dask/job/:id/upload``.

A header names the upload. With that name a worker that got no answer can ask what became of it:
Girder makes an item, moves the content, makes the file, and forgets the upload, and it may die, or
lose its database, between any two of these steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bson import ObjectId
from girder.api import access
from girder.api.describe import Description, autoDescribeRoute
from girder.api.rest import Resource
from girder.constants import AccessType, TokenScope
from girder.exceptions import AccessException, GirderException, RestException
from girder.models.file import File
from girder.models.item import Item
from girder.models.upload import Upload

from girder_dask.files.upload_recovery import UploadState
from girder_dask.plugin.rest import routes
from girder_dask.plugin.rest.routes import StoredJob
from girder_dask.plugin.store.database import to_object_id
from girder_dask.plugin.store.requester import identify

__all__ = ["UPLOAD_INDEX", "ensure", "mount", "remove_empty_items"]

#: The name of the index on files over those that jobs have uploaded.
UPLOAD_INDEX = "dask_uploads"


def ensure() -> None:
    """Make the index."""
    File().ensureIndex(
        (
            [("dask.job", 1), ("created", 1)],
            {"name": UPLOAD_INDEX, "partialFilterExpression": {"dask.job": {"$exists": True}}},
        )
    )


def mount(resource: Resource) -> None:
    """Add the route to the resource ``dask``."""
    routes.add(resource, "GET", ("job", ":id", "uploads"), list_uploads)
    routes.add(resource, "POST", ("job", ":id", "upload"), settle)


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
    state = UploadState.NOTHING
    if File().findOne(mark) is not None:
        state = UploadState.COMPLETE
        if upload is not None:
            Upload().remove(upload)
    elif upload is not None and offset is not None and _offset(upload) == offset:
        state = UploadState.UNCHANGED
    else:
        if upload is not None:
            Upload().cancelUpload(upload)
        if folderId:
            left = Item().find({"folderId": _object_id(folderId), **mark})
            theirs = Item().filterResultsByPermission(left, requester.user, AccessType.WRITE)
            remove_empty_items(theirs)
    return {"state": state.value}


def _object_id(text: str) -> ObjectId:
    found = to_object_id(text)
    if found is None:
        raise RestException(f"{text!r} is no id.")
    return found


def _offset(upload: dict[str, Any]) -> int | None:
    """Return how much of an upload Girder has, None if its content was moved already."""
    try:
        return int(Upload().requestOffset(upload))
    except (OSError, GirderException):
        return None


def remove_empty_items(items: Iterable[dict[str, Any]]) -> None:
    """Remove items that were made for a file, and have none."""
    for item in items:
        if File().findOne({"itemId": item["_id"]}) is None:
            Item().remove(item)
