"""Tokens that plugins written for girder_worker put into the documents of their jobs.

Such a task needs the token while it runs. When the job has ended, the token is blanked wherever it
is in the document: in the arguments, in ``meta`` or in fields of the plugin's own.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from bson import ObjectId, json_util
from girder.models.token import Token
from girder_jobs.models.job import Job
from pymongo import UpdateOne

from girder_dask.plugin.store.database import batches
from girder_dask.plugin.store.models import DaskJob, collection
from girder_dask.protocol.celery_message import TOKEN_ARGUMENTS, find_tokens, replace_tokens

__all__ = ["BLANK", "blank_tokens"]

logger = logging.getLogger(__name__)

# The documents of so many jobs are read at once.
_MAX_JOBS = 50

#: What replaces a token.
BLANK = "(removed)"

#: The field of a job with Celery's id of the call. Jobs without it are not girder_worker's.
_TASK_ID = "celeryTaskId"
# Fields that hold no text of a plugin, and those that the worker has cleaned.
_OTHER_FIELDS = ("log", "dask", "dask_log", "dask_outcome", "timestamps", "access", "progress")

# Other text looks like a token, so Girder is asked, for so many at once.
_MAX_ASKED = 10_000


def blank_tokens(job_ids: Sequence[ObjectId]) -> None:
    """Blank the tokens in the documents of ended jobs, and delete those of the job alone.

    An error is logged: no end of a job depends on it.
    """
    for some in batches(job_ids, _MAX_JOBS):
        try:
            _blank_tokens(some)
        except Exception:
            logger.exception("The tokens in %d ended jobs are not blanked", len(some))


def _blank_tokens(job_ids: Sequence[ObjectId]) -> None:
    found = collection(Job()).find(
        {"_id": {"$in": list(job_ids)}, _TASK_ID: {"$exists": True}},
        dict.fromkeys(_OTHER_FIELDS, False),
    )
    jobs = {job["_id"]: _opened(job) for job in found}
    candidates = {each for job in jobs.values() for each in _candidates(job)}
    known = _existing(candidates) if candidates else {}
    writes = []
    for job_id, job in jobs.items():
        change = {
            name: blanked
            for name, value in job.items()
            if (blanked := _blanked_field(name, value, known)) != value
        }
        if change:
            if "kwargs" in change:  # as girder_jobs stores them
                change["kwargs"] = json_util.dumps(change["kwargs"])
            writes.append(UpdateOne({"_id": job_id}, {"$set": change}))
            if "title" in change:  # it is in the record as well
                DaskJob().collection.update_one(
                    {"_id": job_id}, {"$set": {"title": change["title"]}}
                )
            _delete_own(job_id, job, known)
    if writes:
        Job().collection.bulk_write(writes, ordered=False)


def _opened(job: dict[str, Any]) -> dict[str, Any]:
    """Return a stored job with its keyword arguments in place of their text."""
    kwargs = job.get("kwargs")
    return {**job, "kwargs": json_util.loads(kwargs)} if isinstance(kwargs, str) else job


def _candidates(value: Any) -> Iterator[str]:
    left = [value]
    while left:
        found = left.pop()
        if isinstance(found, str):
            yield from find_tokens(found)
        elif isinstance(found, Mapping):
            left += found.values()
        elif isinstance(found, list):
            left += found


def _existing(ids: Collection[str]) -> dict[str, list[str]]:
    """Return the scopes of those ids that are tokens."""
    return {
        token["_id"]: token.get("scope") or []
        for some in batches(ids, _MAX_ASKED)
        for token in Token().collection.find({"_id": {"$in": some}}, {"scope": True})
    }


def _blanked_field(name: str, value: Any, tokens: Collection[str]) -> Any:
    """Return a field of a job without tokens. ``token`` is one that a plugin keeps there."""
    if name in TOKEN_ARGUMENTS:
        return BLANK if value else value
    return _blanked(value, tokens, is_argument=name == "kwargs")


def _blanked(value: Any, tokens: Collection[str], *, is_argument: bool = False) -> Any:
    """Return a value without tokens, and without any argument that is named like one."""
    if isinstance(value, str):
        return replace_tokens(value, tokens, BLANK)
    if isinstance(value, list):
        return [_blanked(each, tokens, is_argument=is_argument) for each in value]
    if not isinstance(value, Mapping):
        return value
    return {
        name: BLANK
        if is_argument and name in TOKEN_ARGUMENTS and isinstance(each, (str, Mapping)) and each
        else _blanked(each, tokens, is_argument=is_argument)
        for name, each in value.items()
    }


def _delete_own(job_id: ObjectId, job: Any, known: Mapping[str, list[str]]) -> None:
    scope = f"jobs.job_{job_id}"
    own = [each for each in _candidates(job) if scope in known.get(each, ())]
    if own:
        Token().removeWithQuery({"_id": {"$in": own}, "scope": scope})
