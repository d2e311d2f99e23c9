"""Results of jobs: the value or the error of the last attempt.

A small outcome is in the job document, so that the end of a job is one write. It is not among the
fields that Girder shows. A larger one is in ``dask_job``.

Others can create job documents through Girder's own routes, with any fields. So the outcome in a
document counts only if this package has recorded the job, and it is removed from jobs that others
created when this package queues them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bson import ObjectId
from girder_jobs.models.job import Job
from pymongo import UpdateOne

from girder_dask.plugin.store import models
from girder_dask.plugin.store.database import batches
from girder_dask.plugin.store.validation import MalformedDocument, check_outcome
from girder_dask.protocol.messages import StoredResult
from girder_dask.utils.text import shortened

__all__ = [
    "MAX_INLINE_BYTES",
    "MAX_RESULT_BYTES",
    "OUTCOME_FIELD",
    "AttemptOutcome",
    "load",
    "load_errors",
    "load_many",
    "store",
]

logger = logging.getLogger(__name__)

#: The field of a job document with its outcome, if that is small.
OUTCOME_FIELD = "dask_outcome"

#: The most bytes of an outcome that is stored in the job document.
MAX_INLINE_BYTES = 2 * 1024

#: The most bytes of a value or an exception that are stored, whatever
#: ``girder.worker.max-result`` is.
MAX_RESULT_BYTES = 6 * 1024**2

_MAX_JOBS_PER_QUERY = 1_000


@dataclass(frozen=True, slots=True)
class AttemptOutcome:
    """The outcome of an attempt: a packed value, or one line and a packed exception."""

    attempt: int
    value: bytes | None = field(default=None, repr=False)
    error: str | None = None
    exception: bytes | None = field(default=None, repr=False)

    @property
    def is_small(self) -> bool:
        """Whether the outcome is small enough for the job document."""
        # A character takes up to four bytes.
        size = len(self.value or b"") + len(self.exception or b"") + 4 * len(self.error or "")
        return size <= MAX_INLINE_BYTES

    def document(self) -> dict[str, Any]:
        """Return the fields to store, limited to what fits into a document."""
        value, error, exception = self.value, self.error, self.exception
        if value is not None and len(value) > MAX_RESULT_BYTES:
            kept = f"the {MAX_RESULT_BYTES:,} that Girder keeps"
            error = f"it takes {len(value):,} bytes, more than {kept}"
            value = None
        if exception is not None and len(exception) > MAX_RESULT_BYTES:
            exception = None
        return {
            "result": value,
            "error": error if error is None else shortened(error),
            "exception": exception,
            "result_attempt": self.attempt,
        }


def store(outcomes: Sequence[tuple[ObjectId, AttemptOutcome]], now: datetime) -> None:
    """Store outcomes of jobs in ``dask_job``, by the ids of the jobs.

    The outcome of an older attempt never replaces that of a newer one. A value that is too large is
    not stored, and the error gives the reason.
    """
    if outcomes:
        models.DaskJob().collection.bulk_write(
            [
                UpdateOne(
                    {
                        "_id": job_id,
                        "$or": [
                            {"result_attempt": {"$exists": False}},
                            {"result_attempt": {"$lte": outcome.attempt}},
                        ],
                    },
                    {"$set": {**outcome.document(), "ended": now}},
                )
                for job_id, outcome in outcomes
            ],
            ordered=False,
        )


def load(job_id: ObjectId) -> StoredResult:
    """Return the result of a job, empty where none is stored."""
    return next(stored for _, stored in load_many([job_id]))


def load_many(job_ids: Iterable[ObjectId]) -> Iterator[tuple[ObjectId, StoredResult]]:
    """Yield the result of each job, with two queries for a thousand jobs.

    Values can be large, so they are yielded as the database sends them; a caller may stop early.
    """
    for batch in batches(job_ids, _MAX_JOBS_PER_QUERY):
        missing = set(batch)
        for job_id, stored in _load_fields(batch, ("result", "error", "exception")):
            missing.discard(job_id)
            value, error, exception = map(stored.get, ("result", "error", "exception"))
            yield job_id, StoredResult(value=value, error=error, exception=exception)
        for job_id in missing:
            yield job_id, StoredResult()


def load_errors(job_ids: Sequence[ObjectId]) -> dict[ObjectId, str | None]:
    """Return why jobs have failed, by their ids, as far as that is stored."""
    return {job_id: stored.get("error") for job_id, stored in _load_fields(job_ids, ("error",))}


def _load_fields(
    job_ids: Sequence[ObjectId], names: Iterable[str]
) -> Iterator[tuple[ObjectId, Mapping[str, Any]]]:
    """Yield fields of the outcome of the newest attempt of each job that has a record."""
    names = [*names, "result_attempt"]
    jobs = models.collection(Job()).find(
        {"_id": {"$in": list(job_ids)}, OUTCOME_FIELD: {"$exists": True}},
        {f"{OUTCOME_FIELD}.{name}": True for name in names},
    )
    # A malformed field may be missing in what such a projection returns.
    inline = {
        job["_id"]: job[OUTCOME_FIELD]
        for job in jobs
        if _is_valid(job["_id"], job.get(OUTCOME_FIELD))
    }
    records = models.collection(models.DaskJob()).find(
        {"_id": {"$in": list(job_ids)}}, dict.fromkeys(names, True)
    )
    for record in records:
        job_id = record["_id"]
        beside = record if _is_valid(job_id, record) else {}
        within = inline.get(job_id, {})
        is_newer = within.get("result_attempt", 0) >= beside.get("result_attempt", 0)
        yield job_id, within if within and is_newer else beside


def _is_valid(job_id: Any, kept: Any) -> bool:
    try:
        check_outcome(job_id, kept)
    except MalformedDocument as e:
        logger.warning("The stored outcome of a job is ignored: %s", e)
        return False
    return True
