"""The routes for uploads of jobs: ``dask/job/:id/uploads`` and ``dask/job/:id/upload``.

A header names the upload. With that name a worker that got no answer can ask for the state of the
upload: Girder creates an item, moves the content, creates the file and deletes the upload, and it
may die or lose its database between any two of these steps.
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
from girder_dask.plugin.store.access.requester import identify
from girder_dask.plugin.store.database import to_object_id

__all__ = ["UPLOAD_INDEX", "ensure", "mount", "remove_empty_items"]

#: The name of the index over the files that jobs have uploaded.
UPLOAD_INDEX = "dask_uploads"


def ensure() -> None:
    """Create the index."""
    File().ensureIndex(
        (
            [("dask.job", 1), ("created", 1)],
            {"name": UPLOAD_INDEX, "partialFilterExpression": {"dask.job": {"$exists": True}}},
        )
    )


def mount(resource: Resource) -> None:
    """Add the routes to the resource ``dask``."""
    routes.add(resource, "GET", ("job", ":id", "uploads"), list_uploads)
    routes.add(resource, "POST", ("job", ":id", "upload"), settle)


@access.public(scope=TokenScope.DATA_READ)
@autoDescribeRoute(
    Description("List the files that result hooks of a job have uploaded to folders and items.")
    .notes("For running jobs, and for users who may read the job. The oldest file comes first.")
    .modelParam("id", "The id of the job.", model=StoredJob, force=True)
    .param(
        "before",
        "Leave out uploads of this attempt and of later ones.",
        dataType="integer",
        required=False,
    )
    .errorResponse("Read access was denied for the job.", 403)
)
def list_uploads(job: dict[str, Any], before: int | None) -> list[dict[str, Any]]:
    """List the files that a job has uploaded and that still exist."""
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
    Description("Settle an upload of a result whose answer was lost.")
    .notes(
        "For the running job itself. `state` is `complete` if the file exists, `unchanged` if the "
        "request from the offset on has had no effect, and otherwise `nothing`: the rest of the "
        "upload is removed then, and it has to start from the beginning."
    )
    .modelParam("id", "The id of the job.", model=StoredJob, force=True)
    .param("name", "The value of the header Girder-Dask-Upload of its requests.")
    .param("folderId", "The folder of the file.", required=False)
    .param("uploadId", "The id of the upload, if it has one.", required=False)
    .param("offset", "The offset of its last request.", dataType="integer", required=False)
    .errorResponse("The request does not come from the running job.", 403)
)
def settle(
    job: dict[str, Any], name: str, folderId: str | None, uploadId: str | None, offset: int | None
) -> dict[str, str]:
    """Settle an upload that was interrupted."""
    requester = identify()
    if not requester.has_token_of(job):
        raise AccessException(
            f"Only job {job['_id']} itself can settle its uploads, while it is running."
        )
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
        raise RestException(f"{text!r} is not an id.")
    return found


def _offset(upload: dict[str, Any]) -> int | None:
    """Return the bytes of an upload that Girder has, or None if its content was moved."""
    try:
        return int(Upload().requestOffset(upload))
    except (OSError, GirderException):
        return None


def remove_empty_items(items: Iterable[dict[str, Any]]) -> None:
    """Remove those items that contain no file."""
    for item in items:
        if File().findOne({"itemId": item["_id"]}) is None:
            Item().remove(item)
