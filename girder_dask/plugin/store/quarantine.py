"""Malformed documents of jobs: each is set aside with its reason, and the rest goes on.

A job that is set aside ends in ERROR, its log says why, and no scheduler is asked to run it. What
is left of its document stays as it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from bson import ObjectId
from girder_jobs.models.job import Job
from pymongo.errors import PyMongoError

from girder_dask.jobs import FINAL, JobStatus
from girder_dask.plugin.store import models
from girder_dask.plugin.store.validation import Malformed, check_group, check_job
from girder_dask.utils.bounded_dict import BoundedDict

__all__ = ["FIELD", "count", "ensure", "look_after", "put", "require", "sound"]

logger = logging.getLogger(__name__)

#: The field of a job that was set aside: why, and when.
FIELD = "dask_aside"

#: For how long ``girder-dask doctor`` tells of a job that was set aside.
RECENT = timedelta(days=1)

# What has the rest of the plugin find a job.
_MARKS = ("open", "group.open", "remind", "claimed", "claim", "unreached", "waits")

# Seconds between two looks for those that are found in no other way, and the most at once.
_LOOK = 10.0
_MOST = 200
_next_look = 0.0

# Jobs that could not be set aside are found again and again. They are logged once.
_told: BoundedDict[Any, str] = BoundedDict(1_000)


def ensure() -> None:
    """Make the index over the jobs that were set aside."""
    there = {FIELD: {"$exists": True}}
    Job().ensureIndex(([(f"{FIELD}.time", 1)], {"name": FIELD, "partialFilterExpression": there}))


def sound(
    jobs: Iterable[dict[str, Any]], check: Callable[[Mapping[str, Any]], None] = check_job
) -> list[dict[str, Any]]:
    """Return the documents that are as they should be, and set the others aside."""
    kept = []
    for job in jobs:
        try:
            check(job)
        except Malformed as e:
            put(job["_id"], str(e))
        else:
            kept.append(job)
    return kept


def require(job: dict[str, Any], check: Callable[[Mapping[str, Any]], None] = check_job) -> None:
    """Set a document aside that is malformed, and raise Malformed for who has named it."""
    try:
        check(job)
    except Malformed as e:
        put(job["_id"], str(e))
        raise Malformed(e.document_id, e.field, f"{e.expected}, so the job was ended") from e


def look_after() -> None:
    """Set malformed documents aside that no question for jobs finds, now and then."""
    global _next_look
    if time.monotonic() < _next_look:
        return
    _next_look = time.monotonic() + _LOOK
    jobs = models.collection(Job())
    unlike = [
        {"created": {"$not": {"$type": "date"}}},
        {"status": {"$nin": [int(status) for status in JobStatus]}},
        {"dask.scheduler": {"$not": {"$type": ["string", "null"]}}},
    ]
    hidden = {"dask.open": True, "$or": unlike}
    sound(jobs.find(hidden, {"log": False}, limit=_MOST, hint=models.OPEN_INDEX))
    hidden = {"dask.claimed": {"$exists": True, "$not": {"$type": "date"}}}
    sound(jobs.find(hidden, {"log": False}, limit=_MOST, hint=models.CLAIM_INDEX))
    hidden = {"dask.group.open": True, "updated": {"$not": {"$type": "date"}}}
    found = jobs.find(hidden, {"log": False}, limit=_MOST, hint=models.GROUP_INDEX)
    sound(found, check_group)


def put(job_id: Any, reason: str) -> None:
    """Set a job aside: end it in ERROR, unless it has ended, and say why in its log."""
    if _told.get(job_id) != reason:
        _told[job_id] = reason
        logger.error("%s It is set aside, and the other jobs go on.", reason)
    now = datetime.now(timezone.utc)
    jobs = Job().collection
    for change in (_end(reason, now), _bare_end(reason, now)):
        try:
            jobs.update_one({"_id": job_id}, change)
            break
        except PyMongoError as e:
            logger.warning("Job %s cannot be set aside: %s", job_id, e)
    if isinstance(job_id, ObjectId):
        models.clean([job_id])


def _end(reason: str, now: datetime) -> list[dict[str, Any]]:
    """Return the change of a document of which no field need be what it should be."""
    log = {
        "$switch": {
            "branches": [
                {"case": {"$isArray": ["$log"]}, "then": "$log"},
                {"case": {"$eq": [{"$type": "$log"}, "string"]}, "then": ["$log"]},
            ],
            "default": [],
        }
    }
    stamps = {"$cond": [{"$isArray": ["$timestamps"]}, "$timestamps", []]}
    times = {"$filter": {"input": stamps, "cond": {"$eq": [{"$type": "$$this.time"}, "date"]}}}
    text = f"{reason} girder_dask cannot run it, so the job was ended. Start it again.\n"
    (status, *marks) = _bare_end(reason, now)
    whole = {
        "log": {"$concatArrays": [log, [text]]},
        "timestamps": {
            "$concatArrays": [times, [{"status": int(JobStatus.ERROR), "time": now}]],
        },
        "progress": {"$cond": [{"$eq": [{"$type": "$progress"}, "object"]}, "$progress", None]},
    }
    return [{"$set": {**status["$set"], **whole}}, *marks]


def _bare_end(reason: str, now: datetime) -> list[dict[str, Any]]:
    """Return the same for a document that can grow no more."""
    final = [int(status) for status in FINAL]
    outcome = {"result": None, "error": reason, "exception": None, "result_attempt": 0}
    fields = {
        "status": {"$cond": [{"$in": ["$status", final]}, "$status", int(JobStatus.ERROR)]},
        "updated": now,
        FIELD: {"$literal": {"reason": reason, "time": now}},
        "dask_outcome": {"$literal": outcome},
    }
    return [{"$set": fields}, {"$unset": [f"dask.{mark}" for mark in _MARKS]}]


def count(now: datetime) -> dict[str, Any]:
    """Return how many jobs were set aside in the last day, and why the last one was."""
    jobs = models.collection(Job())
    recent = {FIELD: {"$exists": True}, f"{FIELD}.time": {"$gt": now - RECENT}}
    found = list(jobs.find(recent, {FIELD: True}, sort=[(f"{FIELD}.time", -1)], limit=1))
    last = str(found[0][FIELD]["reason"]) if found else None
    return {"number": jobs.count_documents(recent), "last": last}
