"""Number of unfinished jobs by state, task and cluster, counted in the database.

The count goes over all unfinished jobs, so it is shared by all processes and rests between two: for
at least :data:`MIN_REST_S`, and for :data:`REST_FACTOR` times as long as it took. So it takes a
fiftieth of one core of the database, or a twentieth for a queue of many millions. The oldest job
that waits is looked up at each scrape, in a few steps in the same index.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from girder_jobs.models.job import Job
from pymongo.errors import DuplicateKeyError, ExecutionTimeout

from girder_dask.jobs import JobStatus
from girder_dask.plugin.metrics.counter_store import collection
from girder_dask.plugin.metrics.task_labels import OTHER

__all__ = [
    "MAX_REST_S",
    "MIN_REST_S",
    "REST_FACTOR",
    "QueueCount",
    "cluster_label",
    "count_if_due",
    "load",
    "oldest_waiting",
]

#: The least seconds between two counts.
MIN_REST_S = 15.0

#: The most seconds between two counts.
MAX_REST_S = 1200.0

#: How many times as long as a count took the database rests from it.
REST_FACTOR = 50.0

#: The longest time of one count, which must end before a scrape does.
_MAX_COUNT_S = 8.0

# A count that was begun and not stored, since its process ended.
_LOST_COUNT_S = 60.0

_ID = '["queue"]'
_MAX_SCHEDULERS = 20


@dataclass(frozen=True)
class QueueCount:
    """One count of the unfinished jobs.

    Attributes
    ----------
    jobs
        The number of jobs by state, label of the task, and cluster.
    counted
        When they were counted, None if never.
    """

    jobs: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    counted: datetime | None = None


def load() -> QueueCount:
    """Return the last count."""
    return _read(collection().find_one({"_id": _ID}) or {})


def count_if_due(tasks: Sequence[str], index: str) -> None:
    """Count the unfinished jobs if the time has come and no other process does.

    Parameters
    ----------
    tasks
        The names of tasks with labels of their own.
    index
        The index over the unfinished jobs.
    """
    metrics, now = collection(), datetime.now(timezone.utc)
    with contextlib.suppress(DuplicateKeyError):  # another process has just inserted it
        metrics.update_one({"_id": _ID}, {"$setOnInsert": {"due": now}}, upsert=True)
    mine = metrics.update_one(
        {"_id": _ID, "due": {"$lte": now}},
        {"$set": {"due": now + timedelta(seconds=_LOST_COUNT_S)}},
    )
    if mine.modified_count:
        metrics.update_one({"_id": _ID}, {"$set": _counted(tasks, index, now)})


def _counted(tasks: Sequence[str], index: str, now: datetime) -> dict[str, Any]:
    """Count, and return the fields to store."""
    task = {"$cond": [{"$in": ["$dask.task", list(tasks)]}, "$dask.task", OTHER]}
    group = {"scheduler": "$dask.scheduler", "status": "$status", "task": task}
    pipeline = [
        {"$match": {"dask.open": True}},
        {"$group": {"_id": group, "number": {"$sum": 1}}},
    ]
    began = time.monotonic()
    try:
        found = list(
            Job().collection.aggregate(pipeline, hint=index, maxTimeMS=int(_MAX_COUNT_S * 1000))
        )
    except ExecutionTimeout:
        return {"due": now + timedelta(seconds=MAX_REST_S)}
    rest_s = min(max(MIN_REST_S, REST_FACTOR * (time.monotonic() - began)), MAX_REST_S)
    rows = [[*(row["_id"].get(name) for name in group), row["number"]] for row in found]
    # As text, since the values of malformed documents may be of any type.
    text = json.dumps(rows, default=str)
    return {"rows": text, "counted": now, "due": now + timedelta(seconds=rest_s)}


def _read(document: dict[str, Any]) -> QueueCount:
    jobs = Counter[tuple[str, str, str]]()
    for scheduler, status, task, number in json.loads(document.get("rows", "[]")):
        jobs[_state(status), str(task), cluster_label(scheduler)] += number
    return QueueCount(jobs, document.get("counted"))


def cluster_label(scheduler: Any) -> str:
    """Return the label of the cluster that has a job.

    A Girder has one cluster, whose schedulers have other ids after each start.
    """
    return "none" if scheduler is None else "default"


def _state(status: Any) -> str:
    try:
        return JobStatus(status).name
    except ValueError:
        return "UNKNOWN"


def oldest_waiting(index: str, now: datetime) -> dict[str, float]:
    """Return the seconds since the oldest queued job was created, by cluster."""
    oldest: dict[str, float] = {}
    for scheduler in _schedulers(index):
        query = {"dask.open": True, "dask.scheduler": scheduler, "status": int(JobStatus.QUEUED)}
        job = Job().collection.find_one(query, {"created": 1}, sort=[("created", 1)], hint=index)
        if job is not None and isinstance(job.get("created"), datetime):
            label, age_s = cluster_label(scheduler), (now - job["created"]).total_seconds()
            oldest[label] = max(oldest.get(label, 0.0), age_s)
    return oldest


def _schedulers(index: str) -> Iterator[str | None]:
    """Yield the ids of the schedulers that have jobs; None, for none, at the begin and the end.

    A scheduler may claim a job, or give it back, between two steps.
    """
    last = ""
    yield None
    for _ in range(_MAX_SCHEDULERS):
        query = {"dask.open": True, "dask.scheduler": {"$gt": last}}
        order = [("dask.scheduler", 1)]
        job = Job().collection.find_one(query, {"dask.scheduler": 1}, sort=order, hint=index)
        if job is None:
            break
        last = str(job["dask"]["scheduler"])
        yield last
    yield None
