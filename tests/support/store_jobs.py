"""What tests of the store do with jobs, as a scheduler or in the database."""

from __future__ import annotations

import time
from typing import Any

from girder_dask.protocol.messages import JobUpdate
from tests.support.loaded_girder import LoadedGirder


def update(
    job_id: str, sequence: int, *statuses: Any, attempt: int = 1, **fields: Any
) -> JobUpdate:
    """Return an update; statuses are states, or pairs of a state and a time."""
    now = time.time()
    pairs = [s if isinstance(s, tuple) else (s, now) for s in statuses]
    return JobUpdate(
        job_id, attempt, sequence, statuses=[[int(s), t] for s, t in pairs] or None, **fields
    )


def receive(girder: LoadedGirder, scheduler: str, *receipts: tuple[str, int]) -> Any:
    """Acknowledge jobs as a scheduler, by their ids and attempts."""
    return girder.store.acknowledge(scheduler, receipts)


def waits(girder: LoadedGirder, recorded: Any) -> str | None:
    """Return why a job waits."""
    return girder.load(recorded.spec.id)["dask"].get("waits")


def whole_log(job_id: str) -> str:
    """Return the log of a job, from its document and its chunks."""
    from bson import ObjectId

    from girder_dask.plugin.store.logs import chunks

    return b"".join(chunks.load(ObjectId(job_id)).read()).decode()


def count_chunks(job_id: str) -> int:
    """Return how many chunks the log of a job has."""
    from bson import ObjectId

    from girder_dask.plugin.store import models

    return int(models.DaskLog().collection.count_documents({"job": ObjectId(job_id)}))


def fill(girder: LoadedGirder, job_id: str) -> None:
    """Make the document of a job as large as the database takes it, but for a few bytes."""
    import bson

    jobs, query = girder.job.collection, {"_id": girder.object_id(job_id)}
    jobs.update_one(query, {"$set": {"filler": ""}})
    room = 16 * 1024**2 - len(bson.encode(jobs.find_one(query)))
    jobs.update_one(query, {"$set": {"filler": "f" * (room - 4)}})
