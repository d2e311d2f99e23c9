"""What came of jobs: the value or the error that their ends have brought.

A small one is in the job document, so that the end of a job is one write; it is not among the
fields that Girder shows. A larger one is in ``dask_job``.

Job documents can be made by others, through Girder's own routes, with any fields. So what is
in one counts only for a job that this package has recorded, and when it takes over one that
was made by others, that field goes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bson import ObjectId
from girder_jobs.models.job import Job
from pymongo import UpdateOne

from girder_dask.plugin.store import models
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
    "store",
]

logger = logging.getLogger(__name__)

#: The field of a job document that holds what came of it, if that is small.
OUTCOME_FIELD = "dask_outcome"

#: The most bytes that are kept in the job document.
MAX_INLINE_BYTES = 2 * 1024

#: The most bytes of a value, or of an exception, that are kept with a job, whatever
#: ``girder.worker.max-result`` is.
MAX_RESULT_BYTES = 6 * 1024**2


@dataclass(frozen=True, slots=True)
class AttemptOutcome:
    """What came of an attempt: a packed value, or one line and a packed exception."""

    attempt: int
    value: bytes | None = field(default=None, repr=False)
    error: str | None = None
    exception: bytes | None = field(default=None, repr=False)

    @property
    def is_small(self) -> bool:
        """Whether it is kept in the job document."""
        # A character takes up to four bytes.
        size = len(self.value or b"") + len(self.exception or b"") + 4 * len(self.error or "")
        return size <= MAX_INLINE_BYTES

    def document(self) -> dict[str, Any]:
        """Return what is kept of it, no more than a document holds."""
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
    """Keep what came of jobs beside their documents, by the ids of the jobs.

    That of an older attempt never replaces that of a newer one. A value that a document cannot
    hold is not kept, and the error says so.
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


def load(job_id: Any) -> StoredResult:
    """Return what is kept of the end of a job, empty where there is nothing."""
    kept = _load_fields([ObjectId(job_id)], ("result", "error", "exception")).get(
        ObjectId(job_id), {}
    )
    return StoredResult(
        value=kept.get("result"), error=kept.get("error"), exception=kept.get("exception")
    )


def load_errors(job_ids: Sequence[ObjectId]) -> dict[ObjectId, str | None]:
    """Return why jobs have failed, by their ids, as far as that is kept."""
    return {job_id: kept.get("error") for job_id, kept in _load_fields(job_ids, ("error",)).items()}


def _load_fields(
    job_ids: Sequence[ObjectId], names: Iterable[str]
) -> dict[ObjectId, Mapping[str, Any]]:
    """Return fields of what is kept of the newest attempt of jobs."""
    names = [*names, "result_attempt"]
    beside = models.collection(models.DaskJob()).find(
        {"_id": {"$in": list(job_ids)}}, dict.fromkeys(names, True)
    )
    found: dict[ObjectId, Mapping[str, Any]] = {
        record["_id"]: record if _is_valid(record["_id"], record) else {} for record in beside
    }
    within = models.collection(Job()).find(
        {"_id": {"$in": list(found)}, OUTCOME_FIELD: {"$exists": True}},
        {f"{OUTCOME_FIELD}.{name}": True for name in names},
    )
    for job in within:
        kept = job.get(OUTCOME_FIELD)
        if not _is_valid(job["_id"], kept):
            continue
        if kept.get("result_attempt", 0) >= found[job["_id"]].get("result_attempt", 0):
            found[job["_id"]] = kept
    return found


def _is_valid(job_id: Any, kept: Any) -> bool:
    try:
        check_outcome(job_id, kept)
    except MalformedDocument as e:
        logger.warning("What is kept of the end of a job is left out: %s", e)
        return False
    return True
