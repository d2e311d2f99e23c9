"""Recording of maps: a parent job and its jobs, at once or in pieces.

A map that is sent in pieces is *sending* from its first piece to its last. Its jobs start and are
counted meanwhile. If its sender is silent for too long, the parent waits for the jobs that exist
and ends in ERROR, since it is incomplete.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import pymongo
from bson import ObjectId, json_util
from girder.models.user import User
from girder_jobs.models.job import Job
from pymongo.errors import PyMongoError

from girder_dask.errors import GirderError
from girder_dask.jobs import FINAL, JobStatus
from girder_dask.plugin.notify import notifications
from girder_dask.plugin.store import documents, job_records, models, recording, validation
from girder_dask.plugin.store.access.authority import IN_GIRDER, Authority
from girder_dask.plugin.store.database import describe_error
from girder_dask.plugin.store.maps import parents
from girder_dask.plugin.store.maps.counts import progress
from girder_dask.plugin.store.recording import NONE_RECORDED, RecordedJob
from girder_dask.protocol.messages import MapParent, Submission

__all__ = ["MapPiece", "extend_map", "record_map"]

logger = logging.getLogger(__name__)

_CONFLICT = 409

# Timeout for the deletion of a parent whose jobs were not recorded.
_UNDO_TIMEOUT_S = 2.0

# The states in which a map takes no more jobs.
_CLOSED_STATUSES = [int(status) for status in (*FINAL, JobStatus.CANCELING)]


@dataclass(frozen=True, slots=True)
class MapPiece:
    """Calls of a map whose parent exists: ``offset`` come before them, and none after the last."""

    parent: ObjectId
    submissions: Sequence[Submission]
    offset: int
    is_last: bool

    @property
    def sent(self) -> int:
        """The number of calls up to the end of this piece."""
        return self.offset + len(self.submissions)


def record_map(
    group: MapParent,
    submissions: Sequence[Submission],
    user: Mapping[str, Any] | None = None,
    parent: ObjectId | None = None,
    *,
    authority: Authority = IN_GIRDER,
    tokens_later: bool = False,
    more: bool = False,
) -> tuple[dict[str, Any], list[RecordedJob]]:
    """Record a job for each call, and their parent job.

    Parameters and exceptions are those of :func:`.recording.record`. With ``more``, other calls of
    the map follow with :func:`extend_map`.

    Returns
    -------
    tuple
        The document of the parent job, and the jobs.
    """
    owner = group.user if group.user is not None else user
    job = _build(group, submissions, owner, datetime.now(timezone.utc), parent, more=more)
    drafts = recording.build_drafts(submissions, owner, job["_id"], authority)
    try:
        _store(job)
        recording.write(drafts, tokens_later=tokens_later)
    except PyMongoError as e:
        _undo(job)
        raise GirderError(
            f"Girder's database did not store the map '{group.title}' of {len(drafts)} jobs: "
            f"{describe_error(e)}. {NONE_RECORDED}"
        ) from e
    except GirderError:
        _undo(job)
        raise
    _announce(job)
    recorded = recording.announce_all(drafts)
    if not more:
        _complete(job["_id"])
    _read_back(job)
    return job, recorded


def extend_map(
    piece: MapPiece, *, authority: Authority = IN_GIRDER, tokens_later: bool = False
) -> list[RecordedJob]:
    """Record further calls of a map. Their jobs have the owner of the parent.

    Raises
    ------
    SubmissionError
        If a call cannot become a job.
    GirderError
        If the map takes no more jobs, with the status 409, or if the database does not store them.
    """
    parent = _expect_more(piece.parent, piece.sent)
    if parent is None:
        raise _closed(piece.parent)
    owner_id = parent.get("userId")
    owner = User().load(owner_id, force=True) if owner_id else None
    drafts = recording.build_drafts(piece.submissions, owner, parent["_id"], authority)
    recording.write(drafts, tokens_later=tokens_later)
    recorded = recording.announce_all(drafts)
    if piece.is_last:
        _complete(piece.parent, piece.sent)
    return recorded


def _complete(parent: ObjectId, total: int | None = None) -> None:
    try:
        parents.mark_complete(parent, total)
    except PyMongoError:
        # The map is recorded, so the caller must receive it. Its jobs are counted after a timeout.
        logger.exception("The map %s is recorded but not marked complete", parent)


def _closed(parent: ObjectId) -> GirderError:
    found = _load_group(parent)
    if found is None:
        return GirderError(f"There is no map {parent}. No job was created.", status=404)
    status, group = found
    if status in (JobStatus.CANCELING, JobStatus.CANCELED):
        why = "was canceled"
    elif group.get("incomplete"):
        why = "counts as incomplete, since nothing was sent for too long"
    else:
        why = "is complete"
    return GirderError(
        f"The map {parent} {why}, so it takes no more jobs. No job was created.", status=_CONFLICT
    )


def _build(
    group: MapParent,
    submissions: Sequence[Submission],
    user: Mapping[str, Any] | None,
    now: datetime,
    parent: ObjectId | None,
    *,
    more: bool = False,
) -> dict[str, Any]:
    """Return the document of the parent job of ``submissions``, without storing it.

    ``more`` marks a map whose other calls follow.
    """
    tasks = sorted({submission.task for submission in submissions})
    name = group.task or ", ".join(tasks[:3])
    described = Submission(
        task=name,
        payload=b"",
        title=group.title,
        type=group.type,
        public=group.public,
        handler=group.handler,
        other_fields=group.other_fields,
    )
    total = max(group.total or 0, len(submissions)) if more else len(submissions)
    counted = {"total": total, "done": 0, "failed": 0, "canceled": 0}
    marks = {"open": True, "revision": 0, "recording": now, **({"sending": True} if more else {})}
    job = documents.build(
        described, user, now, {"task": name, "group": {**counted, **marks}}, parent
    )
    job["progress"] = progress(counted)
    return job


def _store(job: dict[str, Any]) -> None:
    """Store a parent job before its jobs are stored, so that it can be canceled."""
    models.DaskJob().collection.insert_one(
        {
            "_id": job["_id"],
            "task": job["dask"]["task"],
            "token": None,
            "own_token": False,
            "payload_bytes": 0,
        }
    )
    Job().collection.insert_one(job)


def _undo(job: Mapping[str, Any]) -> None:
    """Delete a parent job whose jobs could not be stored. An error is logged."""
    try:
        with pymongo.timeout(_UNDO_TIMEOUT_S):
            Job().collection.delete_one({"_id": job["_id"]})
            job_records.delete([job["_id"]])
    except PyMongoError:
        logger.exception("The parent job %s of a map that was not recorded may be left", job["_id"])


def _announce(job: dict[str, Any]) -> None:
    """Notify users and event handlers of a new parent job."""
    batch = notifications.NotificationBatch()
    batch.add_created(job)
    batch.send()
    recording.announce(job)


def _read_back(job: dict[str, Any]) -> None:
    """Bring the document of a new parent job into the form in which Girder returns it."""
    if isinstance(job["kwargs"], str):
        job["kwargs"] = json_util.loads(job["kwargs"])


def _expect_more(job_id: ObjectId, sent: int) -> Mapping[str, Any] | None:
    """Record that jobs of a sending map are about to be recorded, and return its parent.

    ``sent`` is the number of its jobs with these. Returns None if the map takes no more jobs.
    """
    found: Mapping[str, Any] | None = Job().collection.find_one_and_update(
        {"_id": job_id, "dask.group.sending": True, "status": {"$nin": _CLOSED_STATUSES}},
        {
            "$set": {"dask.group.recording": datetime.now(timezone.utc)},
            "$max": {"dask.group.total": sent},
            "$inc": {"dask.group.revision": 1},
        },
        {"userId": True},
    )
    return found


def _load_group(job_id: ObjectId) -> tuple[JobStatus, Mapping[str, Any]] | None:
    """Return the state of the parent of a map and its ``dask.group``, None if there is none."""
    job = models.collection(Job()).find_one({"_id": job_id}, {"status": True, "dask.group": True})
    if job is None or not validation.is_map_parent(job):
        return None
    return JobStatus(job["status"]), job["dask"]["group"]
