"""Updates from schedulers, and the writes of changes of many jobs at once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from bson import ObjectId
from girder import events
from girder_jobs.models.job import Job
from pymongo.errors import BulkWriteError

from girder_dask.errors import GirderError
from girder_dask.plugin.girder_events import EVENT_HANDLER, is_bound
from girder_dask.plugin.metrics.counts import counts
from girder_dask.plugin.notify import notifications
from girder_dask.plugin.store import job_records, models, quarantine, results
from girder_dask.plugin.store.database import UNSTORABLE, to_object_id
from girder_dask.plugin.store.job_change import JobChange, Verdict
from girder_dask.plugin.store.logs import chunks
from girder_dask.plugin.store.logs.writer import LOG_FIELD
from girder_dask.plugin.store.maps import parents
from girder_dask.plugin.store.results import OUTCOME_FIELD
from girder_dask.protocol.messages import JobUpdate, attempt_id

__all__ = ["WITHOUT_LOG", "Verdicts", "apply", "publish", "save"]

logger = logging.getLogger(__name__)

#: Error codes of the database for writes that can never succeed: the document would be too large,
#: or has a field of another type than the write needs. All other refusals are temporary.
_PERMANENT_ERROR_CODES = frozenset({2, 9, 14, 28, 40, 52, 54, 57, 121, 10334, 17419})

#: How often a job is read again because another process changed it between reading and writing.
MAX_ROUNDS = 5

# Fields of ``dask`` that show whether a write took effect.
_COMPARED_FIELDS = ("attempt", "sequence", "scheduler", "claim", "waits")

#: A projection of job documents without the log, which can be long and need not be read to be
#: appended to, and without the outcome, which belongs to the owner.
WITHOUT_LOG = {"log": False, f"{LOG_FIELD}.chunks": False, OUTCOME_FIELD: False}


@dataclass
class Verdicts:
    """The reply to a batch of updates, as lists of job ids.

    ``stale``: another scheduler has the job. ``gone``: the job does not exist. ``cancel``: the job
    must be stopped. ``superseded``: the attempt is not recorded, since Girder has a later one of
    the job (as :func:`girder_dask.protocol.messages.attempt_id` names it).
    """

    stale: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    cancel: list[str] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)

    def merge(self, others: Verdicts) -> None:
        """Add other verdicts."""
        for kind, ids in asdict(others).items():
            known = getattr(self, kind)
            known.extend(each for each in ids if each not in known)

    def add(self, job_id: str, attempt: int, verdict: Verdict) -> None:
        """Add the verdict on an update."""
        if verdict == Verdict.APPLIED:
            return
        ids = getattr(self, verdict.value)
        each = attempt_id(job_id, attempt) if verdict == Verdict.SUPERSEDED else job_id
        if each not in ids:
            ids.append(each)


def apply(scheduler: str, updates: Iterable[JobUpdate]) -> Verdicts:
    """Apply updates that a scheduler sends.

    A repeated update is applied once, and an invalid one does not affect the others.

    Parameters
    ----------
    scheduler
        The id of this run of the scheduler.
    updates
        Any number of updates of any jobs; those of one job in order.

    Returns
    -------
    Verdicts
        The reply to the scheduler.

    Raises
    ------
    GirderError
        If other processes keep changing some of the jobs. The updates can be sent again.
    """
    verdicts = Verdicts()
    pending = _group_by_job(updates, verdicts)
    for _ in range(MAX_ROUNDS):
        if not pending:
            return verdicts
        changes = _read(scheduler, pending, verdicts)
        written, refused = save(changes)
        publish(written)
        for change in [*written, *refused]:
            if change.abandoned:
                verdicts.add(str(change.id), change.dask["attempt"], Verdict.STALE)
        done = {change.id for change in [*written, *refused]}
        left = {change.id for change in changes} - done
        pending = {job_id: pending[job_id] for job_id in left}
    if pending:
        raise GirderError(
            f"{len(pending)} jobs, among them {next(iter(pending))}, are not updated: other "
            "processes keep changing them. Send the updates again.",
            status=503,
        )
    return verdicts


def _group_by_job(
    updates: Iterable[JobUpdate], verdicts: Verdicts
) -> dict[ObjectId, list[JobUpdate]]:
    grouped: dict[ObjectId, list[JobUpdate]] = {}
    for update in updates:
        job_id = to_object_id(update.id)
        if job_id is None:
            logger.warning("An update of %r is dropped, since that is not a job id", update.id)
            verdicts.add(str(update.id), update.attempt, Verdict.STALE)
        else:
            grouped.setdefault(job_id, []).append(update)
    return grouped


def _read(
    scheduler: str, pending: dict[ObjectId, list[JobUpdate]], verdicts: Verdicts
) -> list[JobChange]:
    allow = _is_allowed_by_handlers if is_bound("jobs.job.update", besides=EVENT_HANDLER) else None
    found = models.collection(Job()).find(
        {"_id": {"$in": list(pending)}, "dask.task": {"$exists": True}}, WITHOUT_LOG
    )
    changes = {
        job["_id"]: JobChange(job, allow)
        for job in quarantine.filter_valid(found)
        if "attempt" in job["dask"]
    }
    for job_id, updates in pending.items():
        change = changes.get(job_id)
        if change is None:
            if str(job_id) not in verdicts.gone:
                verdicts.gone.append(str(job_id))
            continue
        for update in updates:
            verdict = _apply_one(change, update, scheduler)
            verdicts.add(str(job_id), update.attempt, verdict)
    return list(changes.values())


def _apply_one(change: JobChange, update: JobUpdate, scheduler: str) -> Verdict:
    try:
        return change.apply(update, scheduler)
    except (ValueError, TypeError, KeyError, OverflowError, OSError) as e:
        logger.warning("An update of job %s is dropped: %s", change.id, e)
        return Verdict.STALE


def _is_allowed_by_handlers(info: dict[str, Any]) -> bool:
    try:
        return not events.trigger("jobs.job.update", info).defaultPrevented
    except Exception:
        # Otherwise one job would block all others of its batch forever.
        logger.exception("A handler of jobs.job.update failed for job %s", info["job"]["_id"])
        return True


def save(changes: Sequence[JobChange]) -> tuple[list[JobChange], list[JobChange]]:
    """Write changes of jobs with one request.

    If the database refuses to let a job document grow, its log is stored elsewhere. If that does
    not help, the job ends.

    Returns
    -------
    tuple
        The changes that took effect, and those that the database refuses even for the end of the
        job. All other jobs have changed since they were read, or the database could not write them
        at the moment.
    """
    now = datetime.now(timezone.utc)
    saved = [change for change in changes if not change.changed]
    written, refused = _write([change for change in changes if change.changed], now)
    saved += written
    for is_last in (False, True):
        for change, message in refused:
            logger.error("Job %s cannot be updated: %s", change.id, message)
            if is_last:
                change.abandon(
                    f"Girder's database refuses further updates of this job: {message}", now
                )
            else:
                change.spill()
        written, refused = _write([change for change, _ in refused], now)
        saved += written
    for change, message in refused:
        logger.error("Job %s cannot even be ended: %s", change.id, message)
    job_records.purge_ended([change.id for change in saved if change.ended])
    return saved, [change for change, _ in refused]


def _write(
    changed: Sequence[JobChange], now: datetime
) -> tuple[list[JobChange], list[tuple[JobChange, str]]]:
    """Write changes. Return those that took effect, and the refused ones with the reasons."""
    if not changed:
        return [], []
    # Results come first: whoever sees that a job has ended must find its result.
    results.store(
        [
            (change.id, change.outcome)
            for change in changed
            if change.outcome is not None and change.outcome_beside
        ],
        now,
    )
    chunks.store([chunk for change in changed for chunk in change.log.chunks])
    written, refused = _write_jobs(changed, now)
    written_ids = {change.id for change in written}
    chunks.delete_unnamed(
        chunk for change in changed if change.id not in written_ids for chunk in change.log.chunks
    )
    return written, refused


def _write_jobs(
    changed: Sequence[JobChange], now: datetime
) -> tuple[list[JobChange], list[tuple[JobChange, str]]]:
    refused: dict[int, str] = {}
    failed: dict[int, str] = {}
    try:
        matched = (
            Job()
            .collection.bulk_write([change.operation(now) for change in changed], ordered=False)
            .matched_count
        )
    except BulkWriteError as e:
        errors = e.details.get("writeErrors", [])
        if not errors:
            raise
        for error in errors:
            kind = refused if error["code"] in _PERMANENT_ERROR_CODES else failed
            kind[error["index"]] = error["errmsg"]
        matched = e.details.get("nMatched", 0)
    except UNSTORABLE as e:
        # The driver has not sent anything, so the changes are tried one by one.
        return _write_alone(changed, now, e)
    for index, message in failed.items():
        logger.warning("Job %s is not updated now: %s", changed[index].id, message)
    done = refused.keys() | failed.keys()
    tried = [change for index, change in enumerate(changed) if index not in done]
    if matched != len(tried):
        tried = _written_ones(tried)
    return tried, [(changed[index], message) for index, message in refused.items()]


def _write_alone(
    changed: Sequence[JobChange], now: datetime, error: Exception
) -> tuple[list[JobChange], list[tuple[JobChange, str]]]:
    if len(changed) == 1:
        return [], [(changed[0], f"something in it cannot be stored ({error})")]
    parts = [_write_jobs([change], now) for change in changed]
    written = [change for changes, _ in parts for change in changes]
    return written, [pair for _, refused in parts for pair in refused]


def _written_ones(tried: list[JobChange]) -> list[JobChange]:
    """Return the changes that took effect, read back from the database."""
    positions = {
        job["_id"]: job
        for job in models.collection(Job()).find(
            {"_id": {"$in": [change.id for change in tried]}}, {"status": 1, "dask": 1}
        )
    }
    return [
        change
        for change in tried
        if (job := positions.get(change.id)) is not None and _is_written(change, job)
    ]


def _is_written(change: JobChange, job: Mapping[str, Any]) -> bool:
    # In a job that was never queued, ``dask`` holds only the name of the task.
    dask = job.get("dask")
    dask = dask if isinstance(dask, dict) else {}
    is_there = all(dask.get(key) == change.dask.get(key) for key in _COMPARED_FIELDS)
    return is_there and job.get("status") == change.job["status"]


def publish(changes: Iterable[JobChange]) -> None:
    """Notify users and event handlers of written changes, count them, and recount maps."""
    changes = list(changes)
    notifications.publish(changes)
    counts.changed(changes)
    parents.recount_parents_of(change.job for change in changes if change.steps)
