"""Saves of whole job documents, which other plugins read before they save them.

``Job().save()`` replaces the document. A copy that was read before the job ended would put it back
into its old state. So a save of a job of this package writes all fields but those that this package
writes, which change meanwhile.
"""

from __future__ import annotations

from typing import Any

from girder_jobs.models.job import Job

from girder_dask.celery import may_have_jobs
from girder_dask.plugin.store.argument_tokens import blank_tokens
from girder_dask.plugin.store.documents import RESERVED_FIELDS
from girder_dask.plugin.store.models import collection

__all__ = ["save_other_fields"]

#: The fields that such a save leaves as they are.
OWN_FIELDS = frozenset(
    {
        *RESERVED_FIELDS,
        *("progress", "log", "updated", "created", "handler", "jobInfoSpec", "userId"),
        *("dask_request", "dask_request_size", "celeryTaskId"),
    }
) - {"access"}

# The arguments of a call, and the token that plugins keep with them.
_CALL_FIELDS = frozenset({"args", "kwargs", "token"})


def save_other_fields(event: Any) -> None:
    """Save the fields of a job that its copy may change, in place of the whole document.

    Bound to ``model.job.save``, which ``Job().save()`` triggers before it writes.
    """
    job = event.info
    if "_id" not in job:
        return
    jobs = collection(Job())
    stored = jobs.find_one({"_id": job["_id"], "dask.attempt": {"$exists": True}}, {"log": False})
    if stored is None:  # a new job, or one that was not queued yet
        return
    # How a job that has ended was called does not change. Its copy may have tokens there.
    own = OWN_FIELDS if stored["dask"].get("open") else OWN_FIELDS | _CALL_FIELDS
    change = {name: value for name, value in job.items() if name not in own}
    removed = stored.keys() - job.keys() - own
    update: dict[str, Any] = {"$set": change} if change else {}
    if removed:
        update["$unset"] = dict.fromkeys(removed, True)
    if update:
        jobs.update_one({"_id": job["_id"]}, update)
        if may_have_jobs() and not jobs.find_one(
            {"_id": job["_id"], "dask.open": True}, {"_id": True}
        ):
            blank_tokens([job["_id"]])  # the copy may be older than the end of the job
    event.preventDefault()
