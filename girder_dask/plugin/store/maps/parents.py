"""Parent jobs of ``task.map``: each shows the progress of many jobs.

No scheduler claims a parent. Its subdocument ``dask.group`` contains the last counts: ``total``,
``done``, ``failed`` and ``canceled``. They are always counted anew from the jobs in the database,
so that no job is counted twice or forgotten.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

from bson import ObjectId
from girder_jobs.models.job import Job

from girder_dask.errors import GirderError
from girder_dask.jobs import FINAL, JobStatus
from girder_dask.plugin.notify import notifications
from girder_dask.plugin.store import (
    models,
    quarantine,
    results,
    validation,
)
from girder_dask.plugin.store.maps.count_throttle import CountThrottle
from girder_dask.plugin.store.maps.counts import (
    ParentChange,
    ParentState,
    StatusCounts,
    is_recording_over,
)
from girder_dask.plugin.store.results import AttemptOutcome

__all__ = [
    "cancel",
    "counting_pipeline",
    "load_part_ids",
    "mark_complete",
    "recount_parents_of",
    "recount_quiet",
]

logger = logging.getLogger(__name__)

#: A parent that was not counted for this long is counted with the next claim of a scheduler.
QUIET_PERIOD = timedelta(seconds=5)

# By how much the clock of the ids may go back while a map is recorded.
_CLOCK_SKEW = timedelta(minutes=1)

#: The most jobs of a map that is counted with each change of one of them.
MAX_JOBS_COUNTED_EACH_TIME = 100

#: The most failed jobs that the log of their parent names.
MAX_FAILURES_NAMED = 10

_MAX_ROUNDS = 5
_MAX_PARENTS_PER_QUERY = 200
_WITHOUT_LOG = {"log": False, "args": False, "kwargs": False}


# -- counting ---------------------------------------------------------------------------------


def load_part_ids(job: Mapping[str, Any]) -> list[str] | None:
    """Return the ids of the jobs of a map in the order of the calls.

    None if the given job is not the parent of a map.
    """
    if not validation.is_map_parent(job):
        return None
    # Ids increase, and these were created in the order of the calls.
    found = models.collection(Job()).find(
        {"parentId": job["_id"]}, {"_id": True}, sort=[("_id", 1)]
    )
    return [str(part["_id"]) for part in found]


def recount_parents_of(jobs: Iterable[Mapping[str, Any]]) -> None:
    """Count the parents of jobs whose states have changed."""
    ended: Counter[Any] = Counter()
    for job in jobs:
        if validation.is_id_value(job.get("parentId")):
            ended[job["parentId"]] += job.get("status") in FINAL
    if ended:
        _throttle.count_soon(ended)


def recount_quiet(now: datetime) -> None:
    """Count parents that were not counted for a while.

    A process may have died after it changed a job and before it counted, or another program may
    have changed the job.
    """
    quiet = models.collection(Job()).find(
        {"dask.group.open": True, "updated": {"$lt": now - QUIET_PERIOD}},
        {"_id": True},
        sort=[("updated", 1)],
        limit=_MAX_PARENTS_PER_QUERY,
    )
    ids = [job["_id"] for job in quiet]
    if ids:
        _recount(ids)


def mark_complete(job_id: ObjectId, total: int | None = None) -> None:
    """Record that all jobs of a parent are stored, ``total`` of them if that was unknown."""
    change: dict[str, Any] = {
        "$unset": {"dask.group.recording": True, "dask.group.sending": True},
        "$inc": {"dask.group.revision": 1},
    }
    if total is not None:
        change["$set"] = {"dask.group.total": total}
    Job().collection.update_one({"_id": job_id, "dask.group.recording": {"$exists": True}}, change)
    # Jobs that have started meanwhile were not counted.
    _recount([job_id])


def cancel(job_id: ObjectId) -> JobStatus | None:
    """Cancel a parent, and return its present state. It is CANCELED when all its jobs have ended.

    Raises
    ------
    MalformedDocument
        If its document is malformed. It is in quarantine then.
    """
    for _ in range(_MAX_ROUNDS):
        job = models.collection(Job()).find_one({"_id": job_id}, _WITHOUT_LOG)
        if job is None:
            return None
        if job.get("status") not in FINAL:
            quarantine.require_valid(job, validation.check_map_parent)
        status = JobStatus(job["status"])
        if status in FINAL or status == JobStatus.CANCELING:
            return status
        change = ParentState(job, datetime.now(timezone.utc)).stop()
        if _write([change]):
            notifications.publish([change])
            return JobStatus.CANCELING
    raise GirderError(f"Other processes keep changing job {job_id}. Cancel it again.")


def _recount(ids: Sequence[ObjectId]) -> dict[ObjectId, int]:
    """Count parents, and write the changes. Ids of other jobs are ignored.

    Returns
    -------
    dict
        The number of unfinished jobs, by the ids of parents that are too large to be counted each
        time.
    """
    left = list(ids)
    large: dict[ObjectId, int] = {}
    for _ in range(_MAX_ROUNDS):
        now = datetime.now(timezone.utc)
        # Read before the jobs are counted: a write takes effect only if there was none since, so
        # that an earlier count never replaces a later one.
        found = models.collection(Job()).find(
            {"_id": {"$in": left}, "dask.group.open": True}, _WITHOUT_LOG
        )
        parents = quarantine.filter_valid(found, validation.check_map_parent)
        counts = _counts(parents, now)
        large |= {
            parent_id: count.total - count.ended
            for parent_id, count in counts.items()
            if count.total > MAX_JOBS_COUNTED_EACH_TIME
        }
        changes = [
            change
            for parent in parents
            if (change := _recounted(parent, counts[parent["_id"]], now))
        ]
        _store_errors(changes, now)
        written = _write(changes)
        notifications.publish(written)
        # The parent of a map may itself have a parent, if a job of another map has started it.
        recount_parents_of(change.job for change in written if change.steps)
        written_ids = {change.job["_id"] for change in written}
        left = [change.job["_id"] for change in changes if change.job["_id"] not in written_ids]
        if not left:
            return large
    logger.warning("%d map parents are counted later: other processes change them", len(left))
    return large


_throttle = CountThrottle(_recount)


def _exact_total(parent: Mapping[str, Any]) -> int:
    """Count the jobs of a map by their ids, which do not change. This is slow."""
    ids = {"$gt": ObjectId.from_datetime(parent["created"] - _CLOCK_SKEW)}
    query = {"_id": ids, "parentId": parent["_id"]}
    return int(models.collection(Job()).count_documents(query, hint=[("_id", 1)]))


def _counts(parents: Sequence[Mapping[str, Any]], now: datetime) -> dict[ObjectId, StatusCounts]:
    """Count the jobs of maps, with totals that do not change while jobs change their states.

    The counted index is ordered by states, so a job that changes its state meanwhile may be counted
    twice or not at all. A job that has ended keeps its state, so it is counted once. A total that
    differs from the known one, for example after jobs were deleted, is used if all existing jobs
    have ended and two counts in a row agree.
    """
    known = {
        parent["_id"]: parent["dask"]["group"]["total"]
        for parent in parents
        if "recording" not in parent["dask"]["group"]
    }
    counts = _count([parent["_id"] for parent in parents])
    for parent in parents:
        if parent["_id"] not in known and is_recording_over(parent, now):
            # Missing jobs are reported only once, so the number must be exact.
            counts[parent["_id"]].total = _exact_total(parent)
    doubtful = [i for i, total in known.items() if counts[i].total != total]
    recounted = _count(doubtful)
    # Jobs that ended during the count may have been counted twice. Their states no longer change.
    recounted |= _count([i for i, c in recounted.items() if known[i] <= c.ended < c.total])
    for i, again in recounted.items():
        # If more jobs were started under the same parent, the parent waits for these too.
        is_settled = again.ended == again.total == counts[i].total or again.ended >= known[i]
        counts[i] = again if is_settled else replace(again, total=known[i])
    return counts


def _count(ids: Sequence[ObjectId]) -> dict[ObjectId, StatusCounts]:
    counts = {parent_id: StatusCounts() for parent_id in ids}
    if ids:
        for found in models.collection(Job()).aggregate(counting_pipeline(ids)):
            parent_id = found["_id"].get("parent")
            # A list that contains one of the ids matches too, but is not a parent.
            if isinstance(parent_id, ObjectId):
                counts[parent_id].add(found["_id"].get("status"), found["number"])
    return counts


def counting_pipeline(ids: Sequence[ObjectId]) -> list[dict[str, Any]]:
    """Return the aggregation that counts the jobs of parents by state."""
    return [
        {"$match": {"parentId": {"$in": list(ids)}}},
        {
            "$group": {
                "_id": {"parent": "$parentId", "status": "$status"},
                "number": {"$sum": 1},
            }
        },
    ]


def _write(changes: Sequence[ParentChange]) -> list[ParentChange]:
    """Write changes one by one, and return those that took effect."""
    jobs = Job().collection
    return [
        change for change in changes if jobs.update_one(change.read, change.write).matched_count
    ]


def _store_errors(changes: Sequence[ParentChange], now: datetime) -> None:
    # Errors come first: whoever sees that a job has ended must find its error.
    failed = [change for change in changes if change.job["status"] == JobStatus.ERROR]
    results.store(
        [
            (c.job["_id"], AttemptOutcome(1, error="".join(c.text).partition("\n")[0]))
            for c in failed
        ],
        now,
    )


def _recounted(parent: dict[str, Any], count: StatusCounts, now: datetime) -> ParentChange | None:
    return ParentState(parent, now).counted(count, lambda: _failures(parent["_id"], count))


def _failures(parent_id: ObjectId, count: StatusCounts) -> str:
    """Return the description of failed jobs for the log of their parent."""
    failed = list(
        models.collection(Job()).find(
            {"parentId": parent_id, "status": int(JobStatus.ERROR)},
            {"title": True},
            limit=MAX_FAILURES_NAMED,
        )
    )
    errors = results.load_errors([job["_id"] for job in failed])
    lines = [f"{count.failed} of {count.total} jobs failed:"]
    for job in failed:
        error = (errors.get(job["_id"]) or "see its log").splitlines()[0]
        lines.append(f"  {job['_id']} '{job.get('title')}': {error}")
    if count.failed > len(failed):
        lines.append(f"  and {count.failed - len(failed)} more")
    return "\n".join(lines) + "\n"
