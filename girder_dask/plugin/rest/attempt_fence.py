"""The fence against attempts that are over: what they upload is refused.

The worker names its job and its attempt in headers. Files and items that come with them are marked
with both. Files, artifacts and metadata are refused if Girder knows of a later attempt: a worker
that was thought dead, and comes back in the middle of an upload, must not add to what the new
attempt leaves behind.
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

_CONFLICT = 409
_MAX_DIGITS = 18


def bind() -> None:
    """Bind the events."""
    events.bind("model.upload.finalize", EVENT_HANDLER, _check)
    events.bind("rest.put.item/:id/metadata.before", EVENT_HANDLER, _check_metadata)
    events.bind("model.file.finalizeUpload.before", EVENT_HANDLER, _mark)
    events.bind("model.item.save", EVENT_HANDLER, _mark_item)


def _named() -> tuple[ObjectId | None, int] | None:
    """Return the job and the attempt that this request names. Old workers name no job."""
    attempt = cherrypy.request.headers.get(ATTEMPT_HEADER, "")
    job = cherrypy.request.headers.get(JOB_HEADER, "")
    if not (attempt.isdecimal() and attempt.isascii() and len(attempt) < _MAX_DIGITS):
        return None
    return to_object_id(job), int(attempt)


def _uploader() -> tuple[dict[str, Any], int] | None:
    """Return the job at work that makes this request to upload a result, and its attempt."""
    named = _named()
    if named is None:
        return None
    job_id, attempt = named
    request = cherrypy.request
    if not hasattr(request, "dask_uploader"):  # several events of one request ask
        token = getCurrentToken()
        request.dask_uploader = None if token is None else find_running_job(token["_id"], job_id)
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
        remove_empty_items(Item().find({"folderId": event.info["parentId"], **earlier}))


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
