"""Quarantine of malformed job documents, so that they do not affect other jobs.

A job in quarantine ends in ERROR, its log gives the reason, and no scheduler can claim it. The
rest of its document stays as it was.
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
from girder_dask.plugin.store import job_records, models
from girder_dask.plugin.store.validation import MalformedDocument, check_job, check_map_parent
from girder_dask.utils.bounded_dict import BoundedDict

__all__ = [
    "QUARANTINE_FIELD",
    "add",
    "ensure_index",
    "filter_valid",
    "require_valid",
    "scan",
    "summarize",
]

logger = logging.getLogger(__name__)

#: The field of a job in quarantine: the reason and the time. Also the name of the index.
QUARANTINE_FIELD = "dask_aside"

#: For how long ``girder-dask doctor`` reports a job in quarantine.
RECENT_PERIOD = timedelta(days=1)

# Fields by which the rest of the plugin finds jobs.
_QUEUE_FIELDS = ("open", "group.open", "remind", "claimed", "claim", "unreached", "waits")

# Seconds between two scans for malformed jobs that no other query finds, at least; how many times
# as long as the last scan the rest is at least; and the most jobs of one scan.
_SCAN_INTERVAL_S = 10.0
_REST_FACTOR = 50.0
_MAX_SCANNED_JOBS = 200
_next_scan = 0.0

# Jobs that cannot be changed are found again with each scan. They are logged once.
_logged_reasons: BoundedDict[Any, str] = BoundedDict(1_000)


def ensure_index() -> None:
    """Create the index over the jobs in quarantine."""
    exists = {QUARANTINE_FIELD: {"$exists": True}}
    Job().ensureIndex(
        (
            [(f"{QUARANTINE_FIELD}.time", 1)],
            {"name": QUARANTINE_FIELD, "partialFilterExpression": exists},
        )
    )


def filter_valid(
    jobs: Iterable[dict[str, Any]], check: Callable[[Mapping[str, Any]], None] = check_job
) -> list[dict[str, Any]]:
    """Return the valid documents, and quarantine the others."""
    valid = []
    for job in jobs:
        try:
            check(job)
        except MalformedDocument as e:
            add(job["_id"], str(e))
        else:
            valid.append(job)
    return valid


def require_valid(
    job: dict[str, Any], check: Callable[[Mapping[str, Any]], None] = check_job
) -> None:
    """Quarantine a job and raise MalformedDocument if its document is malformed."""
    try:
        check(job)
    except MalformedDocument as e:
        add(job["_id"], str(e))
        raise MalformedDocument(
            e.document_id, e.field, f"{e.expected}, so the job was ended"
        ) from e


def scan() -> None:
    """Quarantine malformed documents that no other query finds.

    It reads the index over all unfinished jobs, at most every ten seconds and for 2% of the time.
    """
    global _next_scan
    began = time.monotonic()
    if began < _next_scan:
        return
    _next_scan = began + _SCAN_INTERVAL_S  # also after an error
    _scan_all()
    now = time.monotonic()
    _next_scan = now + max(_SCAN_INTERVAL_S, _REST_FACTOR * (now - began))


def _scan_all() -> None:
    jobs = models.collection(Job())
    malformed = [
        {"created": {"$not": {"$type": "date"}}},
        {"status": {"$nin": [int(status) for status in JobStatus]}},
        {"dask.scheduler": {"$not": {"$type": ["string", "null"]}}},
    ]
    hidden = {"dask.open": True, "$or": malformed}
    filter_valid(jobs.find(hidden, {"log": False}, limit=_MAX_SCANNED_JOBS, hint=models.OPEN_INDEX))
    hidden = {"dask.claimed": {"$exists": True, "$not": {"$type": "date"}}}
    filter_valid(
        jobs.find(hidden, {"log": False}, limit=_MAX_SCANNED_JOBS, hint=models.CLAIM_INDEX)
    )
    hidden = {"dask.group.open": True, "updated": {"$not": {"$type": "date"}}}
    found = jobs.find(hidden, {"log": False}, limit=_MAX_SCANNED_JOBS, hint=models.MAP_PARENT_INDEX)
    filter_valid(found, check_map_parent)


def add(job_id: Any, reason: str) -> None:
    """Quarantine a job: end it in ERROR, unless it has ended, and write the reason into its log."""
    if _logged_reasons.get(job_id) != reason:
        _logged_reasons[job_id] = reason
        logger.error("%s The job is in quarantine; other jobs are not affected.", reason)
    now = datetime.now(timezone.utc)
    jobs = Job().collection
    for change in (_full_change(reason, now), _minimal_change(reason, now)):
        try:
            jobs.update_one({"_id": job_id}, change)
            break
        except PyMongoError as e:
            logger.warning("Job %s cannot be put in quarantine: %s", job_id, e)
    if isinstance(job_id, ObjectId):
        job_records.purge_ended([job_id])


def _full_change(reason: str, now: datetime) -> list[dict[str, Any]]:
    """Return the change of a document in which any field may be malformed."""
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
    (status, *marks) = _minimal_change(reason, now)
    whole = {
        "log": {"$concatArrays": [log, [text]]},
        "timestamps": {
            "$concatArrays": [times, [{"status": int(JobStatus.ERROR), "time": now}]],
        },
        "progress": {"$cond": [{"$eq": [{"$type": "$progress"}, "object"]}, "$progress", None]},
    }
    return [{"$set": {**status["$set"], **whole}}, *marks]


def _minimal_change(reason: str, now: datetime) -> list[dict[str, Any]]:
    """Return the change of a document that can grow no further."""
    final = [int(status) for status in FINAL]
    outcome = {"result": None, "error": reason, "exception": None, "result_attempt": 0}
    fields = {
        "status": {"$cond": [{"$in": ["$status", final]}, "$status", int(JobStatus.ERROR)]},
        "updated": now,
        QUARANTINE_FIELD: {"$literal": {"reason": reason, "time": now}},
        "dask_outcome": {"$literal": outcome},
    }
    return [{"$set": fields}, {"$unset": [f"dask.{mark}" for mark in _QUEUE_FIELDS]}]


def summarize(now: datetime) -> dict[str, Any]:
    """Return how many jobs went into quarantine in the last day, and the last reason."""
    jobs = models.collection(Job())
    recent = {
        QUARANTINE_FIELD: {"$exists": True},
        f"{QUARANTINE_FIELD}.time": {"$gt": now - RECENT_PERIOD},
    }
    found = list(
        jobs.find(
            recent, {QUARANTINE_FIELD: True}, sort=[(f"{QUARANTINE_FIELD}.time", -1)], limit=1
        )
    )
    last = str(found[0][QUARANTINE_FIELD]["reason"]) if found else None
    return {"number": jobs.count_documents(recent), "last": last}
