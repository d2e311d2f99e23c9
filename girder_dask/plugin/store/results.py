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
from datetime import datetime
from typing import Any

from bson import ObjectId
from girder_jobs.models.job import Job
from pymongo import UpdateOne

from girder_dask.plugin.store import models
from girder_dask.plugin.store.attempt_outcome import FIELD, Outcome
from girder_dask.plugin.store.validation import Malformed, check_outcome
from girder_dask.protocol.messages import StoredResult

__all__ = ["errors", "keep", "result"]

logger = logging.getLogger(__name__)


def keep(outcomes: Sequence[tuple[ObjectId, Outcome]], now: datetime) -> None:
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
    beside = models.collection(models.DaskJob()).find(
        {"_id": {"$in": list(job_ids)}}, dict.fromkeys(names, True)
    )
    found: dict[ObjectId, Mapping[str, Any]] = {
        record["_id"]: record if _is_sound(record["_id"], record) else {} for record in beside
    }
    within = models.collection(Job()).find(
        {"_id": {"$in": list(found)}, FIELD: {"$exists": True}},
        {f"{FIELD}.{name}": True for name in names},
    )
    for job in within:
        kept = job.get(FIELD)
        if not _is_sound(job["_id"], kept):
            continue
        if kept.get("result_attempt", 0) >= found[job["_id"]].get("result_attempt", 0):
            found[job["_id"]] = kept
    return found


def _is_sound(job_id: Any, kept: Any) -> bool:
    try:
        check_outcome(job_id, kept)
    except Malformed as e:
        logger.warning("What is kept of the end of a job is left out: %s", e)
        return False
    return True
