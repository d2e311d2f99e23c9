"""Which jobs a scheduler lacks, and handing them over to it."""

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
from girder_dask.plugin.store.results import AttemptOutcome
from girder_dask.plugin.store.updates import WITHOUT_LOG, publish, save
from girder_dask.plugin.store.validation import check_record, check_times
from girder_dask.protocol.messages import JobSpec
from girder_dask.utils.background import Guard

__all__ = ["Claim", "claim", "claim_for_push"]

logger = logging.getLogger(__name__)

_guards = {what: Guard(logger, f"The look after {what}") for what in ("documents", "groups")}

#: The most bytes of pickled calls in one answer.
MAX_PAYLOAD_BYTES = 32 * 1024**2

#: How long a new job is left to be delivered by the process that recorded it.
PUSH_GRACE = timedelta(seconds=2)

#: How long it is left to that process if it is known that it is about to deliver it.
PENDING_PUSH_GRACE = timedelta(seconds=30)

#: How long a scheduler has to say that it has a job that was handed to it, before the
#: answer is taken for lost and the job is handed over again.
ACKNOWLEDGE_TIMEOUT = timedelta(seconds=60)

#: How often a job begins anew that its scheduler lacks, though it had taken it. One whose updates
#: Girder cannot apply would do so for ever.
MAX_TIMES_LACKED = 5

CALL_MISSING = "What is needed to run this job is no longer in the database."
LACKED_TOO_OFTEN = (
    f"The scheduler has let go of this job {MAX_TIMES_LACKED + 1} times before Girder knew of its "
    "end, so it is not run again. Look in the logs of Girder and the scheduler for updates of it "
    "that were refused."
)

#: How often the tokens of unfinished jobs are looked after, in seconds, and when one is
#: renewed.
RENEW_INTERVAL_S = 600.0
RENEW_AFTER = timedelta(days=1)

_UNFINISHED = [int(s) for s in JobStatus if s not in FINAL and s != JobStatus.INACTIVE]
_next_renewal: dict[str, float] = {}


@dataclass
class Claim:
    """What is handed to a scheduler: jobs to run, and ids of jobs to stop."""

    specs: list[JobSpec] = field(default_factory=list)
    cancel: list[str] = field(default_factory=list)


def claim(
    scheduler: str, limit: int, lacking: Mapping[ObjectId, tuple[int, int]] | None = None
) -> Claim:
    """Hand unfinished jobs over to a scheduler that does not have them.

    What another run of a scheduler had taken in hand becomes a new attempt. No job is
    handed to two schedulers.

    Parameters
    ----------
    scheduler
        The id of this run of the scheduler.
    limit
        The most jobs to hand over; their pickled calls take 32 MiB at most.
    lacking
        Jobs out of :func:`held` that it does not have, with their attempts and sequences there.
        Those that are still so become new attempts.
    """
    lacking = lacking or {}
    now = datetime.now(timezone.utc)
    answer = Claim(cancel=_collect_cancellations(scheduler, now))
    claim_id = uuid.uuid4().hex
    jobs = _candidates(scheduler, limit, lacking, now)
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
    held, _ = save(changes)
    publish(held)
    taken = [change for change in held if not change.is_final]
    if taken:
        answer.specs = _specs(taken, known, now)
    _renew_tokens(scheduler, now)
    if len(jobs) < limit:  # else the scheduler asks again at once, as it lacks many
        # The jobs that were claimed are not lost with these.
        with _guards["documents"]:
            quarantine.scan()
        with _guards["groups"]:
            parents.recount_quiet(now)
    return answer


def claim_for_push(scheduler: str, job_ids: Sequence[str]) -> set[str]:
    """Note of new jobs that they are sent to a scheduler. This comes before they are sent.

    If it is lost then, the next one knows that a run of them may have begun.

    Parameters
    ----------
    scheduler
        The id of this run of the scheduler.
    job_ids
        The jobs.

    Returns
    -------
    set of str
        Those that are to be sent. The others were claimed meanwhile, or have ended.
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
    )
    if taken.modified_count == len(ids):
        return set(job_ids)
    found = jobs.find({"_id": {"$in": ids}, "dask.claim": claim_id}, {"_id": True})
    return {str(job["_id"]) for job in found}


# -- what there is ----------------------------------------------------------------------------


def _candidates(
    scheduler: str, limit: int, lacking: Mapping[ObjectId, tuple[int, int]], now: datetime
) -> list[dict[str, Any]]:
    """Find jobs that nobody has, those another scheduler had, lost answers, and lost jobs."""
    unfinished = {"$in": _UNFINISHED}
    questions: list[dict[str, Any]] = [
        {"dask.scheduler": None, "status": unfinished, "created": {"$lt": now - PUSH_GRACE}},
        {"dask.scheduler": {"$nin": [None, scheduler]}, "status": unfinished},
        {
            "dask.scheduler": scheduler,
            "status": int(JobStatus.QUEUED),
            "dask.claimed": {"$lt": now - ACKNOWLEDGE_TIMEOUT},
        },
    ]
    jobs: list[dict[str, Any]] = []
    for question in questions:
        if len(jobs) < limit:
            found = models.collection(Job()).find(
                {"dask.open": True, **question},
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
        some = {"_id": {"$in": list(lacking)}, "dask.open": True, "status": unfinished}
        found = models.collection(Job()).find(some, WITHOUT_LOG)
        jobs += (
            job for job in quarantine.filter_valid(found) if _is_lacking(job, scheduler, lacking)
        )
    return jobs[:limit]


def _is_lacking(
    job: Mapping[str, Any], scheduler: str, lacking: Mapping[ObjectId, tuple[int, int]]
) -> bool:
    """Say whether a scheduler lacks a job as it is now: the word of it may have come late."""
    dask = job["dask"]
    return (
        dask["scheduler"] == scheduler
        and "claimed" not in dask
        and lacking.get(job["_id"]) == (dask["attempt"], dask["sequence"])
    )


def _is_about_to_be_pushed(job: Mapping[str, Any], now: datetime) -> bool:
    """Say whether this process is about to deliver a new job."""
    return job["_id"] in tokens.pending and job["created"] > now - PENDING_PUSH_GRACE


def _with_records(
    jobs: Sequence[dict[str, Any]],
) -> tuple[list[dict[str, Any]], dict[Any, dict[str, Any]]]:
    """Return jobs, and how to run each. One of which that is malformed is left out."""
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


# -- taking it --------------------------------------------------------------------------------


def take(
    change: JobChange,
    scheduler: str,
    record: Mapping[str, Any] | None,
    claim_id: str,
    now: datetime,
    *,
    is_lacking: bool = False,
) -> bool:
    """Make a job one of a scheduler. Say whether there is anything to write."""
    dask, status = change.dask, change.job["status"]
    if status == JobStatus.CANCELING and (is_lacking or dask["scheduler"] != scheduler):
        # Who was to stop it is gone, and with it what ran of it.
        change.advance(JobStatus.CANCELED, now)
        return True
    if record is None or not record["payload_bytes"]:
        return _give_up(change, now)
    if is_lacking:
        dask["lacked"] = dask.get("lacked", 0) + 1
        if dask["lacked"] > MAX_TIMES_LACKED:
            return _give_up(change, now, LACKED_TOO_OFTEN)
    if is_lacking or dask["scheduler"] not in (None, scheduler):
        why = "did not have the job any more" if is_lacking else "was restarted"
        dask.update(attempt=dask["attempt"] + 1, sequence=0)
        change.set_pending_reason("")
        change.write(f"The scheduler {why}; this is attempt {dask['attempt']}.\n")
    if status != JobStatus.QUEUED:
        change.advance(JobStatus.QUEUED, now)
    # Removed by the first update of the scheduler, which says that it has the job.
    # The id tells this claim from another one of the same scheduler at the same time.
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
    if len(specs) != len(taken):
        # Ended or deleted since they were taken, or the database has lost a part.
        there = {spec.id for spec in specs}
        missing = [change for change in taken if str(change.id) not in there]
        logger.warning("%d jobs that were claimed have no call", len(missing))
        broken = [JobChange(change.job) for change in missing]
        for change in broken:
            _give_up(change, now)
        publish(save(broken)[0])
    return specs


# -- tokens -----------------------------------------------------------------------------------


def _ensure_tokens(
    taken: Sequence[JobChange], known: dict[Any, dict[str, Any]], now: datetime
) -> list[JobChange]:
    """See to it that each job has a token that is good for a while.

    Returns
    -------
    list
        Those that can have none, as their owner was deleted.
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
    """Renew the tokens of the unfinished jobs of a scheduler, now and then."""
    if time.monotonic() < _next_renewal.get(scheduler, 0.0):
        return
    _next_renewal.clear()  # only the present run of a scheduler comes back
    _next_renewal[scheduler] = time.monotonic() + RENEW_INTERVAL_S
    jobs = models.collection(Job()).find(
        {"dask.open": True, "dask.scheduler": scheduler}, {"created": True}
    )
    some = quarantine.filter_valid(jobs, check_times("created"))
    old = [job["_id"] for job in some if job["created"] < now - RENEW_AFTER]
    if old:
        tokens.renew(job_records.load_own_tokens(old))


# -- what to stop -----------------------------------------------------------------------------


def _collect_cancellations(scheduler: str, now: datetime) -> list[str]:
    """Return jobs that were canceled or deleted, in case nobody was there to be told."""
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
