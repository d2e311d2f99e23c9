"""The fence against uploads of attempts that are over.

The worker sends its job and its attempt in headers. New files and items are marked with both.
Files, artifacts and metadata are refused if there is a later attempt: a worker that was thought
dead and comes back during an upload must not add to the output of the new attempt.
"""

from __future__ import annotations

from typing import Any

import cherrypy
from bson import ObjectId
from girder import events
from girder.api import access
from girder.api.rest import getCurrentToken
from girder.exceptions import RestException
from girder.models.item import Item
from girder_jobs.models.job import Job

from girder_dask.plugin.girder_events import EVENT_HANDLER
from girder_dask.plugin.rest.uploads import remove_empty_items
from girder_dask.plugin.store import models
from girder_dask.plugin.store.database import to_object_id
from girder_dask.plugin.store.job_records import find_running_job
from girder_dask.protocol.names import ATTEMPT_HEADER, JOB_HEADER, UPLOAD_HEADER

__all__ = ["bind"]

_HTTP_CONFLICT = 409
_MAX_ATTEMPT_DIGITS = 18


def bind() -> None:
    """Bind the events."""
    events.bind("model.upload.finalize", EVENT_HANDLER, _check)
    events.bind("rest.put.item/:id/metadata.before", EVENT_HANDLER, _check_metadata)
    events.bind("model.file.finalizeUpload.before", EVENT_HANDLER, _mark)
    events.bind("model.item.save", EVENT_HANDLER, _mark_item)


def _attempt_in_headers() -> tuple[ObjectId | None, int] | None:
    """Return the job and the attempt in the headers of this request. Old workers name no job."""
    attempt = cherrypy.request.headers.get(ATTEMPT_HEADER, "")
    job = cherrypy.request.headers.get(JOB_HEADER, "")
    if not (attempt.isdecimal() and attempt.isascii() and len(attempt) < _MAX_ATTEMPT_DIGITS):
        return None
    return to_object_id(job), int(attempt)


def _uploader() -> tuple[dict[str, Any], int] | None:
    """Return the running job that uploads a result by this request, and its attempt."""
    named = _attempt_in_headers()
    if named is None:
        return None
    job_id, attempt = named
    request = cherrypy.request
    if not hasattr(request, "dask_uploader"):  # a request raises several events
        token = getCurrentToken()
        request.dask_uploader = None if token is None else find_running_job(token["_id"], job_id)
    job = request.dask_uploader
    return None if job is None else (job, attempt)


def _refuse_if_over(what: str) -> None:
    """Refuse a request of an attempt that is over.

    The headers are trusted without the token, which is deleted when the job ends: naming an attempt
    can only lead to a refusal.
    """
    named = _attempt_in_headers()
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
        return  # perhaps a job of another Girder
    current = dask.get("attempt", 1)
    if not isinstance(current, int) or attempt < current:
        why = f"its worker was taken for dead, and a later attempt {what} in its place"
    elif not dask.get("open"):
        why = f"the job has ended, so it no longer {what}"
    else:
        return
    raise RestException(
        f"Attempt {attempt} of job {job['_id']} is over: {why}.", code=_HTTP_CONFLICT
    )


def _check(event: Any) -> None:
    """Refuse an upload of an attempt that is over before it creates anything.

    Otherwise remove the empty items that broken uploads of earlier attempts have left in the same
    folder, since their worker may have been lost before it settled them.
    """
    _refuse_if_over(f"uploads {event.info['name']!r}")
    uploader = _uploader()
    if uploader is None:
        return
    job, attempt = uploader
    if attempt > 1 and event.info.get("parentType") == "folder":
        earlier = {"dask.job": job["_id"], "dask.attempt": {"$lt": attempt}}
        remove_empty_items(Item().find({"folderId": event.info["parentId"], **earlier}))


@access.public  # the route itself checks access
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
