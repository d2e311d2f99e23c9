"""What came of jobs: the value or the error that their ends have brought.

A small one is in the job document, so that the end of a job is one write; it is not among the
fields that Girder shows. A larger one is in ``dask_job``.

Job documents can be made by others, through Girder's own routes, with any fields. So what is
in one counts only for a job that this package has recorded, and when it takes over one that
was made by others, that field goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bson import ObjectId
from girder_jobs.models.job import Job
from pymongo import UpdateOne

from girder_dask.jobs import shortened
from girder_dask.plugin import records
from girder_dask.submit import StoredResult

__all__ = ["FIELD", "MOST_RESULT", "MOST_WITHIN", "Outcome", "errors", "keep", "result"]

#: The field of a job document that holds what came of it, if that is small.
FIELD = "dask_outcome"

#: The most bytes that are kept in the job document.
MOST_WITHIN = 2 * 1024

#: The most bytes of a value, or of an exception, that are kept with a job, whatever
#: ``girder.worker.max-result`` is.
MOST_RESULT = 6 * 1024**2


@dataclass(frozen=True, slots=True)
class Outcome:
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
        return size <= MOST_WITHIN

    def document(self) -> dict[str, Any]:
        """Return what is kept of it, no more than a document holds."""
        value, error, exception = self.value, self.error, self.exception
        if value is not None and len(value) > MOST_RESULT:
            error = (
                f"it takes {len(value):,} bytes, more than the {MOST_RESULT:,} that Girder keeps"
            )
            value = None
        if exception is not None and len(exception) > MOST_RESULT:
            exception = None
        return {
            "result": value,
            "error": error if error is None else shortened(error),
            "exception": exception,
            "result_attempt": self.attempt,
        }


def keep(outcomes: Sequence[tuple[ObjectId, Outcome]], now: datetime) -> None:
    """Keep what came of jobs beside their documents, by the ids of the jobs.

    That of an older attempt never replaces that of a newer one. A value that a document cannot
    hold is not kept, and the error says so.
    """
    if outcomes:
        records.DaskJob().collection.bulk_write(
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


def result(job_id: Any) -> StoredResult:
    """Return what is kept of the end of a job, empty where there is nothing."""
    kept = _kept([ObjectId(job_id)], ("result", "error", "exception")).get(ObjectId(job_id), {})
    return StoredResult(
        value=kept.get("result"), error=kept.get("error"), exception=kept.get("exception")
    )


def errors(job_ids: Sequence[ObjectId]) -> dict[ObjectId, str | None]:
    """Return why jobs have failed, by their ids, as far as that is kept."""
    return {job_id: kept.get("error") for job_id, kept in _kept(job_ids, ("error",)).items()}


def _kept(job_ids: Sequence[ObjectId], names: Iterable[str]) -> dict[ObjectId, Mapping[str, Any]]:
    """Return fields of what is kept of the newest attempt of jobs."""
    names = [*names, "result_attempt"]
    beside = records.collection(records.DaskJob()).find(
        {"_id": {"$in": list(job_ids)}}, dict.fromkeys(names, True)
    )
    found: dict[ObjectId, Mapping[str, Any]] = {record["_id"]: record for record in beside}
    within = records.collection(Job()).find(
        {"_id": {"$in": list(found)}, FIELD: {"$exists": True}},
        {f"{FIELD}.{name}": True for name in names},
    )
    for job in within:
        if job[FIELD].get("result_attempt", 0) >= found[job["_id"]].get("result_attempt", 0):
            found[job["_id"]] = job[FIELD]
    return found
