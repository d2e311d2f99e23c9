"""Claims, by which schedulers take the unfinished jobs that they do not have."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from bson import ObjectId
from girder_jobs.models.job import Job

from girder_dask.jobs import FINAL, JobStatus
from girder_dask.plugin.notify.notifications import load_owners
from girder_dask.plugin.store import job_records, models, quarantine, tokens
from girder_dask.plugin.store.cancellation import REMIND_PERIOD, collect_removals
from girder_dask.plugin.store.job_change import JobChange
from girder_dask.plugin.store.maps import parents
from girder_dask.plugin.store.maps.large_maps import claimable
from girder_dask.plugin.store.results import AttemptOutcome
from girder_dask.plugin.store.retries import with_retry_requests
from girder_dask.plugin.store.updates import WITHOUT_LOG, publish, save
from girder_dask.plugin.store.validation import check_record, check_times
from girder_dask.protocol.messages import JobSpec
from girder_dask.utils.background import Guard

__all__ = ["Claim", "claim", "claim_for_push"]

logger = logging.getLogger(__name__)

_scan_guard = Guard(logger, "The scan for malformed documents of jobs")
_recount_guard = Guard(logger, "Recounting the jobs of maps")

#: The most bytes of pickled calls in the answer to one claim.
MAX_PAYLOAD_BYTES = 32 * 1024**2

#: Grace period in which only the process that recorded a new job delivers it.
PUSH_GRACE = timedelta(seconds=2)

#: The same grace period if that process is known to be about to deliver the job.
PENDING_PUSH_GRACE = timedelta(seconds=30)

#: How long a scheduler may take to acknowledge a claimed job. After that, the answer to its claim
#: counts as lost, and the job can be claimed again.
ACKNOWLEDGE_TIMEOUT = timedelta(seconds=60)

#: How often a job starts anew because its scheduler no longer has it, though it had acknowledged
#: it. Without a limit, a job whose updates Girder cannot apply would do so forever.
MAX_TIMES_LACKED = 5

CALL_MISSING = "The database no longer has the call of this job, so the job cannot run."
LACKED_TOO_OFTEN = (
    f"The scheduler removed this job {MAX_TIMES_LACKED + 1} times before Girder knew of its end, "
    "so it is not run again. Look in the logs of Girder and the scheduler for refused updates."
)

#: Seconds between two checks of the tokens of unfinished jobs, and the age at which one is renewed.
RENEW_INTERVAL_S = 600.0
RENEW_AFTER = timedelta(days=1)

_UNFINISHED = [int(s) for s in JobStatus if s not in FINAL and s != JobStatus.INACTIVE]
_next_renewal: dict[str, float] = {}


@dataclass
class Claim:
    """The answer to a claim: jobs to run, and ids of jobs to stop."""

    specs: list[JobSpec] = field(default_factory=list)
    cancel: list[str] = field(default_factory=list)


def claim(
    scheduler: str, limit: int, lacking: Mapping[ObjectId, tuple[int, int]] | None = None
) -> Claim:
    """Let a scheduler claim unfinished jobs that it does not have.

    A job that another run of a scheduler had begins a new attempt. No two schedulers have the same
    job.

    Parameters
    ----------
    scheduler
        The id of this run of the scheduler.
    limit
        The most jobs of the claim. Their pickled calls have at most 32 MiB.
    lacking
        Jobs that :func:`~girder_dask.plugin.store.acknowledgements.list_held` has returned and that
        the scheduler does not have, with the attempts and sequences of that list. Jobs that have
        not changed since begin new attempts.
    """
    lacking = lacking or {}
    now = datetime.now(timezone.utc)
    answer = Claim(cancel=_collect_cancellations(scheduler, now))
    claim_id = uuid.uuid4().hex
    jobs = claimable(_candidates(scheduler, limit, lacking, now))
    jobs, known = _with_records(jobs)
    changes = [
        change
        for job in _within_payload_limit(jobs, known)
        if take(
            change := JobChange(job),
            scheduler,
            known.get(job["_id"]),
            claim_id,
            now,
            is_lacking=_is_lacking(job, scheduler, lacking),
        )
    ]
    saved, _ = save(changes)
    publish(saved)
    taken = [change for change in saved if not change.is_final]
    if taken:
        answer.specs = _specs(taken, known, now)
    _renew_tokens(scheduler, now)
    if len(jobs) < limit:  # otherwise the scheduler claims again at once
        # An error here must not lose the claimed jobs.
        with _scan_guard:
            quarantine.scan()
        with _recount_guard:
            parents.recount_quiet(now)
    return answer


def claim_for_push(scheduler: str, job_ids: Sequence[str]) -> set[str]:
    """Record that new jobs are pushed to a scheduler, before they are sent.

    If that scheduler is lost, the next one knows that the jobs may have started.

    Parameters
    ----------
    scheduler
        The id of this run of the scheduler.
    job_ids
        The jobs.

    Returns
    -------
    set of str
        The jobs to send. The others were claimed meanwhile, or have ended.
    """
    jobs, ids = models.collection(Job()), [ObjectId(job_id) for job_id in job_ids]
    claim_id = uuid.uuid4().hex
    taken = jobs.update_many(
        {"_id": {"$in": ids}, "dask.open": True, "dask.scheduler": None},
        {
            "$set": {
                "dask.scheduler": scheduler,
                "dask.claimed": datetime.now(timezone.utc),
                "dask.claim": claim_id,
            }
        },
        hint="_id_",  # the planner may prefer an index over very many jobs
    )
    if taken.modified_count == len(ids):
        return set(job_ids)
    found = jobs.find({"_id": {"$in": ids}, "dask.claim": claim_id}, {"_id": True})
    return {str(job["_id"]) for job in found}


# -- candidates -------------------------------------------------------------------------------


def _candidates(
    scheduler: str, limit: int, lacking: Mapping[ObjectId, tuple[int, int]], now: datetime
) -> list[dict[str, Any]]:
    """Find jobs without a scheduler, of another one, of a lost answer, and lacking ones."""
    unfinished = {"$in": _UNFINISHED}
    queries: list[dict[str, Any]] = [
        {"dask.scheduler": None, "status": unfinished, "created": {"$lt": now - PUSH_GRACE}},
        {"dask.scheduler": {"$nin": [None, scheduler]}, "status": unfinished},
        {
            "dask.scheduler": scheduler,
            "status": int(JobStatus.QUEUED),
            "dask.claimed": {"$lt": now - ACKNOWLEDGE_TIMEOUT},
        },
    ]
    jobs: list[dict[str, Any]] = []
    for query in queries:
        if len(jobs) < limit:
            found = models.collection(Job()).find(
                {"dask.open": True, **query},
                WITHOUT_LOG,
                sort=[("dask.scheduler", 1), ("status", 1), ("created", 1)],
                limit=limit - len(jobs),
            )
            jobs += (
                job
                for job in quarantine.filter_valid(found)
                if not _is_about_to_be_pushed(job, now)
            )
    if lacking:
        lost = {"_id": {"$in": list(lacking)}, "dask.open": True, "status": unfinished}
        found = models.collection(Job()).find(lost, WITHOUT_LOG)
        jobs += (
            job for job in quarantine.filter_valid(found) if _is_lacking(job, scheduler, lacking)
        )
    return jobs[:limit]


def _is_lacking(
    job: Mapping[str, Any], scheduler: str, lacking: Mapping[ObjectId, tuple[int, int]]
) -> bool:
    """Return True if a scheduler lacks a job and the job has not changed since the report."""
    dask = job["dask"]
    return (
        dask["scheduler"] == scheduler
        and "claimed" not in dask
        and lacking.get(job["_id"]) == (dask["attempt"], dask["sequence"])
    )


def _is_about_to_be_pushed(job: Mapping[str, Any], now: datetime) -> bool:
    """Return True if this process is about to deliver a new job."""
    return job["_id"] in tokens.pending and job["created"] > now - PENDING_PUSH_GRACE


def _with_records(
    jobs: Sequence[dict[str, Any]],
) -> tuple[list[dict[str, Any]], dict[Any, dict[str, Any]]]:
    """Return jobs and their records. Jobs with malformed records are left out."""
    found = models.collection(models.DaskJob()).find(
        {"_id": {"$in": [job["_id"] for job in jobs]}}, {"result": False}
    )
    there = {record["_id"]: record for record in found}
    known = {
        record["_id"]: record for record in quarantine.filter_valid(there.values(), check_record)
    }
    left_out = there.keys() - known.keys()
    return [job for job in jobs if job["_id"] not in left_out], known


def _within_payload_limit(
    jobs: Sequence[dict[str, Any]], known: Mapping[Any, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    fitting: list[dict[str, Any]] = []
    size = 0
    for job in jobs:
        size += known.get(job["_id"], {}).get("payload_bytes", 0)
        if fitting and size > MAX_PAYLOAD_BYTES:
            break
        fitting.append(job)
    return fitting


# -- the claim of one job ---------------------------------------------------------------------


def take(
    change: JobChange,
    scheduler: str,
    record: Mapping[str, Any] | None,
    claim_id: str,
    now: datetime,
    *,
    is_lacking: bool = False,
) -> bool:
    """Apply the claim of a scheduler to a change. Return True if there is anything to write."""
    dask, status = change.dask, change.job["status"]
    if status == JobStatus.CANCELING and (is_lacking or dask["scheduler"] != scheduler):
        # The scheduler that should have stopped it is lost, and its runs with it.
        change.advance(JobStatus.CANCELED, now)
        return True
    if record is None or not record["payload_bytes"]:
        return _give_up(change, now)
    if is_lacking:
        dask["lacked"] = dask.get("lacked", 0) + 1
        if dask["lacked"] > MAX_TIMES_LACKED:
            return _give_up(change, now, LACKED_TOO_OFTEN)
    if is_lacking or dask["scheduler"] not in (None, scheduler):
        why = "no longer had the job" if is_lacking else "was restarted"
        dask.update(attempt=dask["attempt"] + 1, sequence=0)
        change.set_pending_reason("")
        change.write(f"The scheduler {why}; this is attempt {dask['attempt']}.\n")
    if status != JobStatus.QUEUED:
        change.advance(JobStatus.QUEUED, now)
    # Removed when the scheduler acknowledges the job. The id distinguishes this claim from others
    # of the same scheduler at the same time.
    dask.update(scheduler=scheduler, claimed=now, claim=claim_id)
    return True


def _give_up(change: JobChange, now: datetime, error: str = CALL_MISSING) -> bool:
    logger.error("Job %s: %s", change.id, error)
    change.write(f"{error}\n", ends=True)
    change.advance(JobStatus.ERROR, now)
    change.outcome = AttemptOutcome(change.dask["attempt"], error=error)
    return True


def _specs(
    taken: Sequence[JobChange], known: dict[Any, dict[str, Any]], now: datetime
) -> list[JobSpec]:
    orphans = _ensure_tokens(taken, known, now)
    if orphans:
        _cancel_orphans(orphans, now)
        taken = [change for change in taken if change not in orphans]
    attempts = {change.id: change.dask["attempt"] for change in taken}
    specs = job_records.load_specs([known[job_id] for job_id in attempts], attempts)
    specs = with_retry_requests(specs, {str(each.id): each.retry.stored for each in taken})
    if len(specs) != len(taken):
        # These jobs have ended or were deleted since the claim, or a part of a call is lost.
        there = {spec.id for spec in specs}
        missing = [change for change in taken if str(change.id) not in there]
        logger.warning("The database has no call of %d claimed jobs", len(missing))
        broken = [JobChange(change.job) for change in missing]
        for change in broken:
            _give_up(change, now)
        publish(save(broken)[0])
    return specs


# -- tokens -----------------------------------------------------------------------------------


def _ensure_tokens(
    taken: Sequence[JobChange], known: dict[Any, dict[str, Any]], now: datetime
) -> list[JobChange]:
    """Give each job a token that is valid for at least six days.

    Returns
    -------
    list
        The jobs that cannot have a token, since their owner was deleted.
    """
    tokens.store_of_existing(tokens.pending.take(change.id for change in taken))
    own = {change.id: change for change in taken if known[change.id]["own_token"]}
    expiry = tokens.load_expiry(known[job_id]["token"] or "" for job_id in own)
    users = load_owners(change.job["userId"] for change in own.values())
    renewed, made, orphans = [], {}, []
    for job_id, change in own.items():
        expires = expiry.get(known[job_id]["token"])
        user_id = change.job["userId"]
        if expires is None and user_id is not None and user_id not in users:
            orphans.append(change)
        elif expires is None:
            made[job_id] = tokens.build(users.get(user_id), now, job_id)
            known[job_id]["token"] = made[job_id]["_id"]
        elif expires < now + tokens.LIFETIME - RENEW_AFTER:
            renewed.append(known[job_id]["token"])
    tokens.renew(renewed)
    if made:
        tokens.store_of_existing(list(made.values()))
        job_records.set_tokens({job_id: token["_id"] for job_id, token in made.items()})
    return orphans


def _cancel_orphans(changes: Sequence[JobChange], now: datetime) -> None:
    """Cancel jobs whose owner was deleted."""
    fresh = [JobChange(change.job) for change in changes]
    for change in fresh:
        change.write("The owner of this job was deleted.\n", ends=True)
        change.advance(JobStatus.CANCELED, now)
    publish(save(fresh)[0])


def _renew_tokens(scheduler: str, now: datetime) -> None:
    """Renew the tokens of the unfinished jobs of a scheduler every ten minutes."""
    if time.monotonic() < _next_renewal.get(scheduler, 0.0):
        return
    _next_renewal.clear()  # former runs of the scheduler do not claim again
    _next_renewal[scheduler] = time.monotonic() + RENEW_INTERVAL_S
    jobs = models.collection(Job()).find(
        {"dask.open": True, "dask.scheduler": scheduler}, {"created": True}
    )
    some = quarantine.filter_valid(jobs, check_times("created"))
    old = [job["_id"] for job in some if job["created"] < now - RENEW_AFTER]
    if old:
        tokens.renew(job_records.load_own_tokens(old))


# -- jobs to stop -----------------------------------------------------------------------------


def _collect_cancellations(scheduler: str, now: datetime) -> list[str]:
    """Return the ids of canceled and deleted jobs, which the scheduler may not know of yet."""
    jobs = quarantine.filter_valid(
        models.collection(Job()).find(
            {
                "dask.remind": True,
                "dask.scheduler": {"$in": [None, scheduler]},
                "status": {"$in": [int(JobStatus.CANCELING), int(JobStatus.CANCELED)]},
            },
            {"updated": True, "status": True},
        ),
        check_times("updated"),
    )
    old = [
        job["_id"]
        for job in jobs
        if job["status"] == JobStatus.CANCELED and job["updated"] < now - REMIND_PERIOD
    ]
    if old:
        Job().collection.update_many({"_id": {"$in": old}}, {"$unset": {"dask.remind": True}})
    return [*(str(job["_id"]) for job in jobs), *collect_removals(now)]
