"""Retention: jobs, logs, artifacts and results that are old enough are deleted in small steps.

Jobs are examined in the order of their ids, which begin with the time of creation, so that no index
over all jobs is needed. What an unfinished job needs as an argument stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from bson import ObjectId
from girder.models.user import User
from girder_jobs.models.job import Job
from pymongo import UpdateOne

from girder_dask.jobs import JobStatus
from girder_dask.plugin.retention_rules import RetentionRule
from girder_dask.plugin.store import artifacts, models, results
from girder_dask.plugin.store.database import batches, to_object_id
from girder_dask.plugin.store.logs import chunks
from girder_dask.plugin.store.logs.writer import LOG_FIELD

__all__ = ["MAX_STEP_JOBS", "RetentionStep", "delete_step"]

#: The most jobs that one step examines.
MAX_STEP_JOBS = 500

_DELETED_LOG = "[The log was deleted, since the job ended long ago.]\n"
_DELETED_RESULT = "it was deleted, since the job ended long ago"
_MAX_OPEN_JOBS_PER_QUERY = 1_000
_FIELDS = ("status", "type", "userId", "updated", "dask.attempt", "dask.deleted", "dask.task")


@dataclass(frozen=True, slots=True)
class RetentionStep:
    """What one step did.

    Attributes
    ----------
    deleted
        How many jobs were deleted, or had something deleted.
    after
        The id of the last job that was examined, None if there are no others.
    """

    deleted: int
    after: ObjectId | None


def delete_step(
    rule: RetentionRule,
    after: ObjectId | None,
    now: datetime,
    *,
    limit: int = MAX_STEP_JOBS,
    is_dry: bool = False,
) -> RetentionStep:
    """Delete what a rule allows of the jobs that follow after an id.

    Parameters
    ----------
    rule
        The rule.
    after
        The last job of the step before, None for the first step.
    now
        The time from which ages are counted.
    limit
        The most jobs that are examined.
    is_dry
        Only count.
    """
    before = now - timedelta(days=rule.days)
    ids: dict[str, Any] = {"$lt": ObjectId.from_datetime(before)}
    if after is not None:
        ids["$gt"] = after
    found = list(
        models.collection(Job()).find(
            {"_id": ids}, dict.fromkeys(_FIELDS, True), sort=[("_id", 1)], limit=limit
        )
    )
    matches = _matcher(rule, before)
    chosen = [job for job in found if matches(job)]
    if chosen and rule.delete in ("jobs", "results"):
        needed = _needed_jobs()
        chosen = [job for job in chosen if job["_id"] not in needed]
    if chosen and not is_dry:
        _DELETIONS[rule.delete](chosen, now)
    return RetentionStep(len(chosen), found[-1]["_id"] if len(found) == limit else None)


def _matcher(rule: RetentionRule, before: datetime) -> Callable[[Mapping[str, Any]], bool]:
    states = {int(JobStatus[state]) for state in rule.states}
    types = None if rule.types is None else set(rule.types)
    owners = None if rule.owners is None else _ids_of(rule.owners)

    def matches(job: Mapping[str, Any]) -> bool:
        dask, updated = job.get("dask"), job.get("updated")
        return (
            isinstance(dask, dict)
            and not (isinstance(done := dask.get("deleted"), dict) and rule.delete in done)
            and job.get("status") in states
            and isinstance(updated, datetime)
            and updated.replace(tzinfo=before.tzinfo) < before
            and (types is None or job.get("type") in types)
            and (owners is None or job.get("userId") in owners)
        )

    return matches


def _ids_of(logins: Sequence[str]) -> set[ObjectId]:
    names = [login.lower() for login in logins]
    return {user["_id"] for user in User().find({"login": {"$in": names}}, fields=["_id"])}


def _needed_jobs() -> set[ObjectId]:
    """Return the jobs whose results are arguments of unfinished jobs."""
    unfinished = models.collection(Job()).find(
        {"dask.open": True}, {"_id": True}, hint=models.OPEN_INDEX
    )
    needed: set[ObjectId] = set()
    for ids in batches((job["_id"] for job in unfinished), _MAX_OPEN_JOBS_PER_QUERY):
        depending = {"_id": {"$in": list(ids)}, "dependencies": {"$nin": [None, []]}}
        records = models.collection(models.DaskJob()).find(depending, {"dependencies": True})
        for record in records:
            needed |= {found for i in record["dependencies"] if (found := to_object_id(i))}
    return needed


def _delete_jobs(jobs: Sequence[Mapping[str, Any]], _now: datetime) -> None:
    for job in jobs:
        # Only if it is as it was: it may have been started again.
        same = {key: job.get(key) for key in ("_id", "status", "updated")}
        document = models.collection(Job()).find_one(same, {"log": False, "args": False})
        if document is not None:
            Job().remove(document)


def _delete_logs(jobs: Sequence[Mapping[str, Any]], now: datetime) -> None:
    changes = {"$set": {"log": [_DELETED_LOG], "dask.log_bytes": 0, "dask.deleted.logs": now}}
    _change(jobs, {**changes, "$unset": {LOG_FIELD: True}})
    chunks.delete([job["_id"] for job in jobs])


def _delete_artifacts(jobs: Sequence[Mapping[str, Any]], now: datetime) -> None:
    for job in jobs:
        artifacts.remove_all(job["_id"])
    _change(jobs, {"$set": {"dask.deleted.artifacts": now}})


def _delete_results(jobs: Sequence[Mapping[str, Any]], now: datetime) -> None:
    errors = results.load_errors([job["_id"] for job in jobs])
    models.DaskJob().collection.bulk_write(
        [
            UpdateOne(
                {"_id": job["_id"]},
                {
                    "$set": {
                        "result": None,
                        "exception": None,
                        "error": errors.get(job["_id"]) or _DELETED_RESULT,
                        "result_attempt": job["dask"].get("attempt") or 0,
                    }
                },
            )
            for job in jobs
        ],
        ordered=False,
    )
    changes = {"$unset": {results.OUTCOME_FIELD: True}}
    _change(jobs, {**changes, "$set": {"dask.deleted.results": now}})


def _change(jobs: Sequence[Mapping[str, Any]], change: Mapping[str, Any]) -> None:
    ids = [job["_id"] for job in jobs]
    Job().collection.update_many({"_id": {"$in": ids}}, change)


_DELETIONS: Mapping[str, Callable[[Sequence[Mapping[str, Any]], datetime], None]] = {
    "jobs": _delete_jobs,
    "logs": _delete_logs,
    "artifacts": _delete_artifacts,
    "results": _delete_results,
}
