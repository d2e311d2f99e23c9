"""Cancellation of jobs, of the jobs that they have started, and of deleted users' jobs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from bson import ObjectId
from girder_jobs.models.job import Job

from girder_dask.errors import GirderError
from girder_dask.jobs import FINAL, HANDLER, JobStatus
from girder_dask.plugin.store import job_records, models, quarantine
from girder_dask.plugin.store.job_change import JobChange
from girder_dask.plugin.store.maps import large_maps, parents
from girder_dask.plugin.store.updates import MAX_ROUNDS, WITHOUT_LOG, publish, save
from girder_dask.plugin.store.validation import MalformedDocument, is_map_parent

__all__ = [
    "FINAL_STATUSES",
    "REMIND_PERIOD",
    "AskScheduler",
    "cancel",
    "cancel_children",
    "cancel_jobs",
    "cancel_jobs_of_user",
    "clean_up_ended",
    "collect_removals",
    "record_removal",
]

logger = logging.getLogger(__name__)

#: For how long the answer to each claim repeats that a job was canceled.
REMIND_PERIOD = timedelta(minutes=10)

_MAX_JOBS_PER_QUERY = 1_000

#: The numbers of the states that a job never leaves.
FINAL_STATUSES = [int(status) for status in FINAL]


#: Tells the scheduler to end jobs, and returns the ids of those that have started or may have; None
#: if the scheduler does not answer. Girder may not know yet that these are running.
AskScheduler = Callable[[Sequence[str]], Collection[str] | None]


def _no_scheduler(_ids: Sequence[str]) -> None:
    return None


def cancel(job_id: ObjectId, ask: AskScheduler = _no_scheduler) -> JobStatus | None:
    """Cancel a job, but not the jobs that it has started; see :func:`cancel_children`.

    A job that has not started is CANCELED at once, with or without a scheduler. A running job is
    CANCELING until nothing of it runs any longer. A job that has ended stays as it is.

    Parameters
    ----------
    job_id
        The id of the job.
    ask
        Tells the scheduler to end queued jobs that it has.

    Returns
    -------
    JobStatus or None
        The present state of the job, None if it does not exist.

    Raises
    ------
    GirderError
        If other processes keep changing the job.
    MalformedDocument
        If the document of the job is malformed. The job is in quarantine then.
    """
    job = models.collection(Job()).find_one({"_id": job_id}, WITHOUT_LOG)
    if job is not None and is_map_parent(job):
        return parents.cancel(job_id)
    if job is not None and job.get("status") not in FINAL_STATUSES:
        quarantine.require_valid(job)
    left = _cancel_all([job_id], ask)
    if left:
        raise GirderError(f"Other processes keep changing job {job_id}. Cancel it again.")
    return job_records.load_status(job_id)


def cancel_children(job_id: ObjectId, ask: AskScheduler = _no_scheduler) -> list[str]:
    """Cancel the unfinished jobs that a job has started, directly or through other jobs.

    Takes the same parameters as :func:`cancel`. The jobs of large maps are canceled later, see
    :mod:`girder_dask.plugin.store.maps.large_maps`.

    Returns
    -------
    list of str
        The ids of the jobs that the scheduler must stop.

    Raises
    ------
    GirderError
        If other processes keep changing one of the jobs.
    """
    to_stop: list[str] = []
    seen, unvisited = {job_id}, _not_large([job_id])
    left: set[ObjectId] = set()
    while unvisited:
        children = list(
            models.collection(Job()).find(
                {"parentId": {"$in": unvisited[:_MAX_JOBS_PER_QUERY]}},
                {"status": True, "dask.open": True, "dask.group": True, "handler": True},
            )
        )
        del unvisited[:_MAX_JOBS_PER_QUERY]
        # Ended children count too, since jobs that they have started may still be running.
        fresh = [child for child in children if child["_id"] not in seen]
        seen.update(child["_id"] for child in fresh)
        ours, blocked = cancel_jobs(
            [child for child in fresh if child.get("status") not in FINAL_STATUSES], ask
        )
        left |= blocked
        maps = [child["_id"] for child in fresh if is_map_parent(child)]
        unvisited += [child["_id"] for child in fresh if not is_map_parent(child)]
        unvisited += _not_large(maps)
        to_stop += [str(child_id) for child_id in ours]
    # Count again, for maps whose jobs have all ended meanwhile.
    parents.recount_parents_of([{"parentId": parent} for parent in seen])
    if left:
        raise GirderError(
            f"{len(left)} jobs that job {job_id} has started, among them {min(left)}, are not "
            "canceled: other processes keep changing them. Cancel it again."
        )
    return to_stop


def cancel_jobs(
    jobs: Iterable[dict[str, Any]], ask: AskScheduler
) -> tuple[list[ObjectId], set[ObjectId]]:
    """Cancel unfinished jobs of any kind.

    Returns
    -------
    tuple
        The jobs of this plugin that the scheduler must stop, and those that other processes keep
        changing.
    """
    ours = _cancel_others(jobs)
    return ours, _cancel_all(ours, ask)


def _not_large(maps: Iterable[ObjectId]) -> list[ObjectId]:
    """Return jobs without large maps. The jobs of those are canceled step by step."""
    small = []
    for job_id in maps:
        if large_maps.is_large(job_id):
            large_maps.add_canceled(job_id)
        else:
            small.append(job_id)
    return small


def cancel_jobs_of_user(user: Mapping[str, Any], ask: AskScheduler = _no_scheduler) -> list[str]:
    """Cancel the unfinished jobs of a user who is deleted.

    Returns
    -------
    list of str
        The ids of the jobs that the scheduler must stop.
    """
    unfinished: list[dict[str, Any]] = [{"dask.open": True}, {"dask.group.open": True}]
    jobs = models.collection(Job()).find(
        {"userId": user["_id"], "$or": unfinished}, {"dask.open": True, "dask.group": True}
    )
    ours = _cancel_others(jobs)
    left = _cancel_all(ours, ask, f"The owner of this job, {user['login']}, was deleted.\n")
    for job_id in left:
        logger.warning("Job %s of a deleted user could not be canceled; cancel it", job_id)
    return [str(job_id) for job_id in ours]


def _cancel_others(children: Iterable[dict[str, Any]]) -> list[ObjectId]:
    """Cancel parents of maps and jobs of other handlers. Return the ids of the rest."""
    ours = []
    for child in children:
        if is_map_parent(child):
            with contextlib.suppress(MalformedDocument):  # it has ended in quarantine
                parents.cancel(child["_id"])
        elif isinstance(child.get("dask"), dict) and child["dask"].get("open"):
            ours.append(child["_id"])
        else:
            _cancel_foreign(child["_id"])
    return ours


def _cancel_foreign(job_id: ObjectId) -> None:
    try:
        job = Job().load(job_id, force=True)
        if job is not None:
            Job().cancelJob(job)
    except Exception:
        # The handler is foreign code, and the other jobs must still be canceled.
        logger.exception("Job %s of another handler could not be canceled", job_id)


def _cancel_all(ids: Sequence[ObjectId], ask: AskScheduler, why: str = "") -> set[ObjectId]:
    """Cancel jobs, many with one write, and write the reason into their logs.

    Returns
    -------
    set
        The jobs that other processes keep changing.
    """
    left = set(ids)
    started, asked, informed = set[str](), set[ObjectId](), set[ObjectId]()
    for _ in range(MAX_ROUNDS):
        if not left:
            break
        found = _unfinished(left)
        doubtful = {job["_id"] for job in found if _may_have_started(job)} - asked
        if doubtful:
            answer = ask([str(job_id) for job_id in doubtful])
            if answer is not None:
                started |= set(answer)
                informed |= doubtful
            asked |= doubtful
            found = _unfinished(left)
        # Jobs that a scheduler has received while it was asked are asked about in the next round.
        late = {job["_id"] for job in found if _may_have_started(job)} - asked
        ready = [JobChange(job) for job in found if job["_id"] not in late]
        changes = [change for change in ready if _apply_cancel(change, started, informed, why)]
        saved, _ = save(changes)
        publish(saved)
        left = late | {change.id for change in changes} - {change.id for change in saved}
    return left


def _unfinished(ids: Iterable[ObjectId]) -> list[dict[str, Any]]:
    found = models.collection(Job()).find(
        {"_id": {"$in": list(ids)}, "status": {"$nin": FINAL_STATUSES}}, WITHOUT_LOG
    )
    return quarantine.filter_valid(found)


def _may_have_started(job: Mapping[str, Any]) -> bool:
    """Return True if a queued job may have started without Girder's knowledge."""
    scheduler = (job.get("dask") or {}).get("scheduler")
    return job["status"] == JobStatus.QUEUED and scheduler is not None


def _apply_cancel(
    change: JobChange, started: Collection[str], informed: Collection[ObjectId], why: str
) -> bool:
    """Apply the cancellation to a change. Return True if there is anything to write."""
    status = change.job["status"]
    if status == JobStatus.CANCELING:
        return False
    is_pending = status in (JobStatus.INACTIVE, JobStatus.QUEUED) and str(change.id) not in started
    if why:
        change.write(why)
    end = JobStatus.CANCELED if is_pending else JobStatus.CANCELING
    change.advance(end, datetime.now(timezone.utc))
    if not is_pending or change.id not in informed:
        # The answer to each claim repeats it until the scheduler certainly knows.
        change.dask["remind"] = True
    return True


def clean_up_ended(job: dict[str, Any]) -> bool:
    """Clean up after a job that was ended through Girder's own ``updateJob``.

    Returns
    -------
    bool
        True if the scheduler must stop the job.
    """
    if job["status"] not in FINAL_STATUSES or (
        job.get("handler") != HANDLER and not job.get("dask")
    ):
        return False
    # The given document may have been read before the job was queued.
    ended = Job().collection.update_one(
        {"_id": job["_id"], "dask.open": True, "status": job["status"]},
        {
            "$unset": {"dask.open": True, "dask.waits": True, "dask.unreached": True},
            "$set": {"dask.remind": True},
        },
    )
    if not ended.modified_count:
        return False
    if isinstance(job.get("dask"), dict):
        job["dask"].pop("open", None)
    job_records.purge_ended([job["_id"]])
    parents.recount_parents_of([job])
    return True


def record_removal(job_id: ObjectId) -> None:
    """Record that an unfinished job is deleted, in case the scheduler is unreachable now."""
    models.DaskJob().collection.replace_one(
        {"_id": job_id}, {"removed": datetime.now(timezone.utc)}, upsert=True
    )


def collect_removals(now: datetime) -> list[str]:
    """Return the ids of jobs deleted before they had ended, and drop the records of old ones."""
    jobs = models.collection(models.DaskJob())
    found = list(jobs.find({"removed": {"$exists": True}}, {"removed": True}))
    old = [
        job["_id"]
        for job in found
        if not isinstance(job["removed"], datetime) or job["removed"] < now - REMIND_PERIOD
    ]
    if old:
        jobs.delete_many({"_id": {"$in": old}, large_maps.LEFT_BEHIND: {"$exists": False}})
    return [str(job["_id"]) for job in found]
