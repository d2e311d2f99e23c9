"""The parent jobs of ``task.map``: one job that shows how many of many are done.

Such a job is never handed to a scheduler. Its subdocument ``dask.group`` holds what was
counted last: ``total``, ``done``, ``failed`` and ``canceled``. It is always counted anew
from the jobs in the database, so that nothing can be counted twice or be forgotten.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

from bson import ObjectId, json_util
from girder_jobs.models.job import Job

from girder_dask.errors import GirderError
from girder_dask.jobs import FINAL, JobStatus
from girder_dask.plugin.notify import notifications
from girder_dask.plugin.store import documents, job_records, models, quarantine, results, validation
from girder_dask.plugin.store.maps.count_throttle import CountThrottle
from girder_dask.plugin.store.maps.counts import (
    ParentChange,
    ParentState,
    StatusCounts,
    is_overdue,
    progress,
)
from girder_dask.plugin.store.results import AttemptOutcome
from girder_dask.protocol.messages import MapParent, Submission

__all__ = [
    "build",
    "cancel",
    "counting_pipeline",
    "delete",
    "load_part_ids",
    "mark_complete",
    "recount_parents_of",
    "recount_quiet",
    "store",
]

logger = logging.getLogger(__name__)

#: A group that was not counted for this long is counted when a scheduler asks for jobs.
QUIET_PERIOD = timedelta(seconds=5)

# By how much the clock that makes ids may go back while a group is recorded.
_CLOCK_SKEW = timedelta(minutes=1)

#: The most jobs of a group that is counted with each change of one of them.
MAX_JOBS_COUNTED_EACH_TIME = 100

#: How many failed jobs the log of their parent names.
MAX_FAILURES_NAMED = 10

_MAX_ROUNDS = 5
_MAX_PARENTS_PER_QUERY = 200
_WITHOUT_LOG = {"log": False, "args": False, "kwargs": False}


# -- recording --------------------------------------------------------------------------------


def build(
    group: MapParent,
    submissions: Sequence[Submission],
    user: Mapping[str, Any] | None,
    now: datetime,
    parent: ObjectId | None,
) -> dict[str, Any]:
    """Return the document of the parent job of ``submissions``, not yet stored."""
    tasks = sorted({submission.task for submission in submissions})
    name = ", ".join(tasks[:3])
    described = Submission(
        task=name,
        payload=b"",
        title=group.title,
        type=group.type,
        public=group.public,
        handler=group.handler,
        other_fields=group.other_fields,
    )
    counted = {"total": len(submissions), "done": 0, "failed": 0, "canceled": 0}
    marks = {"open": True, "revision": 0, "recording": now}
    job = documents.build(
        described, user, now, {"task": name, "group": {**counted, **marks}}, parent
    )
    job["progress"] = progress(counted)
    return job


def store(job: dict[str, Any]) -> None:
    """Store the parent job, before its jobs are stored: there must be one to cancel."""
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


def delete(job: Mapping[str, Any]) -> None:
    """Delete a parent job whose jobs could not be stored."""
    Job().collection.delete_one({"_id": job["_id"]})
    job_records.delete([job["_id"]])


def mark_complete(job: dict[str, Any]) -> None:
    """Note that all jobs of a parent are stored. From now on they are counted."""
    Job().collection.update_one({"_id": job["_id"]}, {"$unset": {"dask.group.recording": True}})
    job["dask"]["group"].pop("recording", None)
    if isinstance(job["kwargs"], str):
        job["kwargs"] = json_util.loads(job["kwargs"])
    # Those that have begun since were not counted.
    _recount([job["_id"]])


# -- counting ---------------------------------------------------------------------------------


def load_part_ids(job: Mapping[str, Any]) -> list[str] | None:
    """Return the ids of the jobs under the parent of a map, in the order of the calls.

    None for a job that is no such parent.
    """
    if not validation.is_map_parent(job):
        return None
    # They were made one after another, and an id counts on from the one before.
    found = models.collection(Job()).find(
        {"parentId": job["_id"]}, {"_id": True}, sort=[("_id", 1)]
    )
    return [str(part["_id"]) for part in found]


def recount_parents_of(jobs: Iterable[Mapping[str, Any]]) -> None:
    """Count the groups that some jobs, whose states have changed, belong to."""
    ended: Counter[Any] = Counter()
    for job in jobs:
        if validation.is_id_value(job.get("parentId")):
            ended[job["parentId"]] += job.get("status") in FINAL
    if ended:
        _throttle.ask(ended)


def recount_quiet(now: datetime) -> None:
    """Count groups that nothing was heard of for a while.

    Who changed a job may have died before it counted, or somebody else changed it.
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


def cancel(job_id: ObjectId) -> JobStatus | None:
    """Note that a group is to be canceled, and return the state that it is in now.

    It is CANCELED when all its jobs have ended.

    Raises
    ------
    Malformed
        If its document is malformed. Then it was set aside.
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
    raise GirderError(f"Job {job_id} is being changed by others all the time. Cancel it again.")


def _recount(ids: Sequence[ObjectId]) -> dict[ObjectId, int]:
    """Count groups, and write what has changed. Ids of other jobs do no harm.

    Returns
    -------
    dict
        Those with so many jobs that they need not be counted each time, and how many of these
        have not ended.
    """
    left = list(ids)
    large: dict[ObjectId, int] = {}
    for _ in range(_MAX_ROUNDS):
        now = datetime.now(timezone.utc)
        # Read before the jobs are counted: a write holds only if nobody has written since,
        # so that what was counted first never replaces what was counted later.
        found = models.collection(Job()).find(
            {"_id": {"$in": left}, "dask.group.open": True}, _WITHOUT_LOG
        )
        groups = quarantine.filter_valid(found, validation.check_map_parent)
        counts = _counts(groups, now)
        large |= {
            group_id: count.total - count.ended
            for group_id, count in counts.items()
            if count.total > MAX_JOBS_COUNTED_EACH_TIME
        }
        changes = [
            change for group in groups if (change := _recounted(group, counts[group["_id"]], now))
        ]
        _store_errors(changes, now)
        written = _write(changes)
        notifications.publish(written)
        # A group may be the job of another one, if it was started by one of its jobs.
        recount_parents_of(change.job for change in written if change.steps)
        held = {change.job["_id"] for change in written}
        left = [change.job["_id"] for change in changes if change.job["_id"] not in held]
        if not left:
            return large
    logger.warning("%d groups of jobs are counted later: others change them", len(left))
    return large


_throttle = CountThrottle(_recount)


def _exact_total(group: Mapping[str, Any]) -> int:
    """Count the jobs of a group by their ids, which do not change. This takes its time."""
    ids = {"$gt": ObjectId.from_datetime(group["created"] - _CLOCK_SKEW)}
    query = {"_id": ids, "parentId": group["_id"]}
    return int(models.collection(Job()).count_documents(query, hint=[("_id", 1)]))


def _counts(groups: Sequence[Mapping[str, Any]], now: datetime) -> dict[ObjectId, StatusCounts]:
    """Count groups, with totals that do not change while jobs go from one state to another.

    The index that is counted is ordered by states, so that a job may be passed twice, or not at
    all, if it moves meanwhile. None that has ended does, so those are counted once each. A total
    other than the known one, as of a group of which jobs were deleted, holds if all that are
    there have ended, and that is counted twice running.
    """
    known = {
        group["_id"]: group["dask"]["group"]["total"]
        for group in groups
        if "recording" not in group["dask"]["group"]
    }
    counts = _count([group["_id"] for group in groups])
    for group in groups:
        if group["_id"] not in known and is_overdue(group, now):
            # What is missing is said once and for all.
            counts[group["_id"]].total = _exact_total(group)
    doubtful = [i for i, total in known.items() if counts[i].total != total]
    recounted = _count(doubtful)
    # The last of them may have been passed twice while they ended. They move no more.
    recounted |= _count([i for i, c in recounted.items() if known[i] <= c.ended < c.total])
    for i, again in recounted.items():
        # With more than are known, as somebody has started one under the same parent, it waits.
        is_settled = again.ended == again.total == counts[i].total or again.ended >= known[i]
        counts[i] = again if is_settled else replace(again, total=known[i])
    return counts


def _count(ids: Sequence[ObjectId]) -> dict[ObjectId, StatusCounts]:
    counts = {group_id: StatusCounts() for group_id in ids}
    if ids:
        for found in models.collection(Job()).aggregate(counting_pipeline(ids)):
            parent = found["_id"].get("parent")
            # A list of ids, among which is one of these, is no parent.
            if isinstance(parent, ObjectId):
                counts[parent].add(found["_id"].get("status"), found["number"])
    return counts


def counting_pipeline(ids: Sequence[ObjectId]) -> list[dict[str, Any]]:
    """Return the question how many jobs of some parents are in which state."""
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
    """Write changes, each for itself, and return those that took place."""
    jobs = Job().collection
    return [
        change for change in changes if jobs.update_one(change.read, change.write).matched_count
    ]


def _store_errors(changes: Sequence[ParentChange], now: datetime) -> None:
    # Before the jobs are seen to have ended, so that who sees it finds the error.
    failed = [change for change in changes if change.job["status"] == JobStatus.ERROR]
    results.store(
        [
            (c.job["_id"], AttemptOutcome(1, error="".join(c.text).partition("\n")[0]))
            for c in failed
        ],
        now,
    )


def _recounted(group: dict[str, Any], count: StatusCounts, now: datetime) -> ParentChange | None:
    return ParentState(group, now).counted(count, lambda: _failures(group["_id"], count))


def _failures(group_id: ObjectId, count: StatusCounts) -> str:
    """Return what the log of a parent says of its jobs that failed."""
    failed = list(
        models.collection(Job()).find(
            {"parentId": group_id, "status": int(JobStatus.ERROR)},
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
