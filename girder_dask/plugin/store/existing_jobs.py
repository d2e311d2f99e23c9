"""Queueing of jobs whose documents exist already.

Code inside Girder makes such documents with ``Job().createJob``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from girder_jobs.models.job import Job
from pymongo.errors import BulkWriteError, DuplicateKeyError, PyMongoError

from girder_dask import config
from girder_dask.errors import GirderError, SubmissionError
from girder_dask.jobs import HANDLER, JobStatus
from girder_dask.plugin import settings
from girder_dask.plugin.metrics.counts import counts
from girder_dask.plugin.store import job_records, tokens
from girder_dask.plugin.store.database import describe_error
from girder_dask.plugin.store.documents import start_fields
from girder_dask.plugin.store.job_change import JobChange
from girder_dask.plugin.store.recording import NEW_DASK_FIELDS, RecordedJob
from girder_dask.plugin.store.results import AttemptOutcome
from girder_dask.plugin.store.updates import publish, save
from girder_dask.protocol.execution_options import OPTION_NAMES
from girder_dask.protocol.messages import JobSpec, Submission
from girder_dask.protocol.payload import pack_call
from girder_dask.tasks.options import checked_options

__all__ = ["adopt", "queue_inactive"]


def queue_inactive(job: dict[str, Any], user: Mapping[str, Any] | None) -> RecordedJob:
    """Queue an INACTIVE job that code inside Girder has created with ``Job().createJob``.

    Its ``dask.task`` names the task; its ``args`` and ``kwargs`` are those of the call.

    Parameters
    ----------
    job
        The job document, which is updated.
    user
        Its owner.

    Raises
    ------
    SubmissionError
        If it names no task, cannot be pickled, or is not INACTIVE.
    GirderError
        If the database does not store it.
    """
    dask = job.get("dask")
    given: dict[str, Any] = dask if isinstance(dask, dict) else {}
    task = given.get("task")
    if not isinstance(task, str) or not all(task.partition(":")):
        raise SubmissionError(
            f"Job {job['_id']} names no task. Give createJob "
            "otherFields={'dask': {'task': 'package.module:function'}}."
        )
    if job["status"] != JobStatus.INACTIVE:
        raise SubmissionError(f"Job {job['_id']} was scheduled before.", task=task)
    payload = pack_call(
        job["args"], job["kwargs"], (), task=task, limit=config.nbytes("max-payload")
    )
    now = datetime.now(timezone.utc)
    token = tokens.build(user, now, job["_id"])
    spec = JobSpec(
        id=str(job["_id"]),
        attempt=1,
        task=task,
        payload=payload,
        token=token["_id"],
        default_api_url=settings.default_api_url(),
        package=given.get("package"),
        title=str(job["title"]),
        trusted=True,
        **checked_options(given, task),
    )
    _queue(job, spec, token, now)
    return RecordedJob(job, spec)


def adopt(
    job: dict[str, Any],
    submission: Submission,
    user: Mapping[str, Any] | None,
    fields: Mapping[str, Any],
    removed: tuple[str, ...],
) -> RecordedJob:
    """Queue a job that another plugin has made and handled so far.

    Parameters
    ----------
    job
        The job document, INACTIVE or QUEUED, which is updated.
    submission
        How it runs.
    user
        Its owner.
    fields, removed
        Fields of the document to set and to remove.

    Raises
    ------
    SubmissionError
        If it has another state, or this plugin has it already.
    GirderError
        If the database does not store it.
    """
    dask = job.get("dask")
    is_ours = isinstance(dask, dict) and "open" in dask
    if job["status"] not in (JobStatus.INACTIVE, JobStatus.QUEUED) or is_ours:
        raise SubmissionError(f"Job {job['_id']} was scheduled before.", task=submission.task)
    now = datetime.now(timezone.utc)
    token = tokens.build(user, now, job["_id"])
    spec = JobSpec(
        id=str(job["_id"]),
        attempt=1,
        task=submission.task,
        payload=submission.payload,
        token=token["_id"],
        default_api_url=settings.default_api_url(),
        package=submission.package,
        title=str(job["title"]),
        not_before=submission.not_before,
        trusted=True,
        **{name: getattr(submission, name) for name in OPTION_NAMES},
    )
    change = {
        "$set": {**fields, "handler": HANDLER, "dask.task": submission.task},
        "$unset": dict.fromkeys(removed, True),
    }
    Job().collection.update_one({"_id": job["_id"], "dask.open": {"$exists": False}}, change)
    job["dask"] = {"task": submission.task}
    _queue(job, spec, token, now)
    return RecordedJob(job, spec)


def _queue(job: dict[str, Any], spec: JobSpec, token: dict[str, Any], now: datetime) -> None:
    change = JobChange(dict(job))
    change.dask.update(NEW_DASK_FIELDS, package=spec.package, **start_fields(spec.not_before))
    change.outcome = AttemptOutcome(0)  # replaces any outcome that its creator has put there
    if job["status"] != JobStatus.QUEUED:
        change.advance(JobStatus.QUEUED, now)
    conflict = f"Job {job['_id']} was scheduled or changed by another request."
    try:
        tokens.store([token])
        job_records.store_records([spec], [True], [True])
        saved, _ = save([change])
    except (DuplicateKeyError, BulkWriteError) as e:
        # The stored record belongs to the other request.
        tokens.delete([str(spec.token)])
        raise SubmissionError(conflict, task=spec.task) from e
    except PyMongoError as e:
        raise GirderError(
            f"Girder's database did not store job {job['_id']}: {describe_error(e)}."
        ) from e
    if not saved:
        job_records.delete([job["_id"]])
        raise SubmissionError(conflict, task=spec.task)
    publish(saved)
    counts.created([spec.task])
    job.update({k: v for k, v in change.job.items() if k not in ("kwargs", "args")})
