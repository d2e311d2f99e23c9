"""Recording of new jobs.

Girder is the queue of record. A job and everything that is needed to run it are written before
anything is sent to the scheduler, so that the scheduler can always claim it again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import pymongo
from bson import ObjectId, json_util
from girder_jobs.models.job import Job
from pymongo.errors import (
    PyMongoError,
    ServerSelectionTimeoutError,
)

from girder_dask.errors import GirderError, SubmissionError
from girder_dask.plugin import settings
from girder_dask.plugin.metrics.counts import counts
from girder_dask.plugin.notify.notifications import NotificationBatch
from girder_dask.plugin.store import documents, job_records, tokens
from girder_dask.plugin.store.access.authority import IN_GIRDER, Authority
from girder_dask.plugin.store.access.dependencies import check as check_dependencies
from girder_dask.plugin.store.database import UNSTORABLE, describe_error, insert
from girder_dask.plugin.store.documents import start_fields
from girder_dask.protocol.execution_options import OPTION_NAMES
from girder_dask.protocol.messages import JobSpec, Submission

__all__ = [
    "NEW_DASK_FIELDS",
    "NONE_RECORDED",
    "Draft",
    "RecordedJob",
    "announce",
    "announce_all",
    "build_drafts",
    "record",
    "write",
]

logger = logging.getLogger(__name__)

#: The subdocument ``dask`` of a new job, besides its task.
NEW_DASK_FIELDS = {"attempt": 1, "sequence": 0, "scheduler": None, "log_bytes": 0, "open": True}

# Timeout for the deletion of jobs that were recorded in part.
_UNDO_TIMEOUT_S = 2.0

#: The end of messages about jobs of which the database stored none.
NONE_RECORDED = "None of them was recorded."
_MAYBE_RECORDED = (
    "They may have been recorded: look in Girder's list of jobs before you start them again."
)


@dataclass(frozen=True, slots=True)
class RecordedJob:
    """The document of a recorded job, and the specification that the scheduler needs to run it."""

    job: dict[str, Any]
    spec: JobSpec


@dataclass(slots=True)
class Draft:
    """A job that is about to be recorded."""

    job: dict[str, Any]
    spec: JobSpec
    user: Mapping[str, Any] | None
    token: dict[str, Any] | None = field(repr=False)
    from_girder: bool


def record(
    submissions: Sequence[Submission],
    user: Mapping[str, Any] | None = None,
    parent: ObjectId | None = None,
    *,
    authority: Authority = IN_GIRDER,
    tokens_later: bool = False,
) -> list[RecordedJob]:
    """Record a job for each call: all of them, or none.

    Parameters
    ----------
    submissions
        The calls.
    user
        The owner of jobs whose calls name none. If None, they have no owner, as in Girder.
    parent
        The id of the job that starts them.
    authority
        The authority under which they are started.
    tokens_later
        If true, the tokens go to :data:`girder_dask.plugin.store.tokens.pending`, and whoever sends
        the jobs stores them.

    Raises
    ------
    SubmissionError
        If a call cannot become a job.
    GirderError
        If the database does not store them.
    """
    drafts = build_drafts(submissions, user, parent, authority)
    write(drafts, tokens_later=tokens_later)
    return announce_all(drafts)


def build_drafts(
    submissions: Sequence[Submission],
    user: Mapping[str, Any] | None,
    parent: ObjectId | None,
    authority: Authority,
) -> list[Draft]:
    """Return the jobs of calls with all that is to be written of them.

    Raises
    ------
    SubmissionError
        If a call cannot become a job.
    """
    now = datetime.now(timezone.utc)
    default = settings.default_api_url()
    drafts = [
        _draft(submission, user, now, parent, authority, default) for submission in submissions
    ]
    check_dependencies([(draft.spec, draft.user) for draft in drafts])
    return drafts


def announce_all(drafts: Sequence[Draft]) -> list[RecordedJob]:
    """Notify users and event handlers of jobs that are written, and return the jobs."""
    batch = NotificationBatch()
    for draft in drafts:
        batch.add_created(draft.job)
    for draft in drafts:
        announce(draft.job)
        if isinstance(draft.job["kwargs"], str):
            draft.job["kwargs"] = json_util.loads(draft.job["kwargs"])
    batch.send()
    counts.created(draft.spec.task for draft in drafts)
    return [RecordedJob(draft.job, draft.spec) for draft in drafts]


def _draft(
    submission: Submission,
    user: Mapping[str, Any] | None,
    now: datetime,
    parent: ObjectId | None,
    authority: Authority,
    default_api_url: str | None,
) -> Draft:
    owner = submission.user if submission.user is not None else user
    dask = {
        **NEW_DASK_FIELDS,
        **start_fields(submission.not_before),
        "task": submission.task,
        "package": submission.package,
    }
    job = documents.build(submission, owner, now, dask, parent)
    own = None if submission.token else tokens.build(owner, now, job["_id"])
    token = own["_id"] if own else _token_id(submission.token)
    spec = JobSpec(
        id=str(job["_id"]),
        attempt=1,
        task=submission.task,
        payload=submission.payload,
        token=token,
        girder_api_url=authority.address(submission.api_url),
        default_api_url=default_api_url,
        package=submission.package,
        title=str(job["title"]),
        dependencies=list(submission.dependencies) or None,
        not_before=submission.not_before,
        trusted=authority.runs_code,
        **{name: getattr(submission, name) for name in OPTION_NAMES},
    )
    return Draft(job, spec, owner, own, authority.may_start_package_of(submission.task))


def _token_id(token: Any) -> str:
    return str(token["_id"] if isinstance(token, Mapping) else token)


def write(drafts: Sequence[Draft], *, tokens_later: bool) -> None:
    """Write the drafts. The job documents come last, so that every existing job can run.

    Raises
    ------
    SubmissionError
        If a job cannot be stored.
    GirderError
        If the database does not store them.
    """
    if not drafts:
        return
    may_exist = False
    try:
        if tokens_later:
            # Before the jobs exist, so that every claim finds the token.
            tokens.pending.put({draft.spec.id: draft.token for draft in drafts if draft.token})
        else:
            _write_tokens(drafts)
        _write_records(drafts)
        may_exist = True
        insert(Job().collection, [draft.job for draft in drafts])
    except Exception as e:
        # After any error (BSON has errors of its own), nothing may be left behind.
        may_exist = may_exist and not isinstance(e, ServerSelectionTimeoutError)
        may_exist = not _undo(drafts) and may_exist
        if isinstance(e, UNSTORABLE):
            raise SubmissionError(
                f"One of {len(drafts)} new jobs, the first of {drafts[0].spec.task}, cannot be "
                f"stored: {describe_error(e)}. {NONE_RECORDED}",
                task=drafts[0].spec.task,
            ) from e
        outcome = _MAYBE_RECORDED if may_exist else NONE_RECORDED
        raise GirderError(
            f"Girder's database did not store {len(drafts)} new jobs, the first of "
            f"{drafts[0].spec.task}: {describe_error(e)}. {outcome}"
        ) from e


def _undo(drafts: Sequence[Draft]) -> bool:
    """Delete the stored parts of jobs that were not recorded. Return True if that worked."""
    ids = [draft.job["_id"] for draft in drafts]
    try:
        with pymongo.timeout(_UNDO_TIMEOUT_S):
            Job().collection.delete_many({"_id": {"$in": ids}})
            tokens.delete(draft.token["_id"] for draft in drafts if draft.token)
            job_records.delete(ids)
    except PyMongoError:
        logger.exception("Parts of %d jobs that were not recorded may be left", len(ids))
        return False
    return True


def _write_tokens(drafts: Sequence[Draft]) -> None:
    tokens.store([draft.token for draft in drafts if draft.token is not None])


def _write_records(drafts: Sequence[Draft]) -> None:
    job_records.store_records(
        [draft.spec for draft in drafts],
        [draft.token is not None for draft in drafts],
        [draft.from_girder for draft in drafts],
    )


def announce(job: dict[str, Any]) -> None:
    """Trigger the events of a new job. Errors of their handlers are logged."""
    try:
        documents.announce_saved(job)
    except Exception:
        # The job is recorded and will run, so the caller must receive it.
        logger.exception("A handler of model.job.save.after failed for job %s", job["_id"])
