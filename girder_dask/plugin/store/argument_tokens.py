"""Tokens that plugins written for girder_worker put into the shown arguments of their jobs.

Such a task needs the token while it runs. When the job has ended, the token is blanked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bson import ObjectId, json_util
from girder.models.token import Token
from girder_jobs.models.job import Job
from pymongo import UpdateOne

from girder_dask.plugin.store.models import collection

__all__ = ["BLANK", "blank_tokens"]

#: What replaces a token.
BLANK = "(removed)"
# The name of the argument, as slicer_cli_web uses it.
_NAME = "token"


def blank_tokens(job_ids: Sequence[ObjectId]) -> None:
    """Blank the argument ``token`` of ended jobs, and delete those that are tokens of the job."""
    jobs = collection(Job()).find(
        {"_id": {"$in": list(job_ids)}, "kwargs": {"$regex": f'"{_NAME}"'}}, {"kwargs": True}
    )
    writes = []
    for job in jobs:
        kwargs = json_util.loads(job["kwargs"])
        if not isinstance(kwargs, dict) or kwargs.get(_NAME) in (None, BLANK):
            continue
        _delete(kwargs[_NAME], job["_id"])
        text = json_util.dumps({**kwargs, _NAME: BLANK})
        writes.append(UpdateOne({"_id": job["_id"]}, {"$set": {"kwargs": text}}))
    if writes:
        Job().collection.bulk_write(writes, ordered=False)


def _delete(given: Any, job_id: ObjectId) -> None:
    token = given.get("_id") if isinstance(given, dict) else given
    if isinstance(token, str):
        Token().removeWithQuery({"_id": token, "scope": f"jobs.job_{job_id}"})
