"""Job documents, as ``Job().createJob`` would make them, for many jobs at once."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import bson
from bson import ObjectId, json_util
from girder.constants import AccessType
from girder_jobs.models.job import Job

from girder_dask.errors import SubmissionError
from girder_dask.jobs import HANDLER, JobStatus
from girder_dask.plugin.girder_events import trigger_others
from girder_dask.plugin.store.database import UNSTORABLE, describe_error, to_object_id
from girder_dask.protocol.job_fields import MAX_FIELD_LEVELS
from girder_dask.protocol.messages import Submission
from girder_dask.utils.text import clean_text

__all__ = ["RESERVED_FIELDS", "announce_saved", "build", "start_fields", "storable"]

#: The most bytes of a new job document. The log is added to it, and MongoDB allows 16 MiB.
MAX_JOB_BYTES = 4 * 1024**2

#: The most bytes of the arguments that a job document shows. Lists of jobs contain them.
MAX_SHOWN_BYTES = 256 * 1024

#: Fields that ``other_fields`` never sets: the plugin relies on them, or they grant access.
RESERVED_FIELDS = (
    *("_id", "status", "access", "timestamps"),
    *("dask", "dask_log", "dask_outcome", "dask_retry"),
)

_STORABLE_TYPES = (type(None), bool, bytes, datetime, ObjectId)
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 200


def build(
    submission: Submission,
    user: Mapping[str, Any] | None,
    now: datetime,
    dask: Mapping[str, Any],
    parent: ObjectId | None = None,
) -> dict[str, Any]:
    """Return the job document of a call, with ``kwargs`` serialised as in the database.

    Raises
    ------
    SubmissionError
        If the fields given for the job are too large for a job document, or if a handler of
        ``model.job.save`` refuses it.
    """
    job: dict[str, Any] = {
        "title": submission.title,
        "type": submission.type,
        "args": storable(list(submission.args)),
        "kwargs": _shown_kwargs(submission.kwargs),
        "created": now,
        "updated": now,
        "when": now,
        "interval": 0,
        "status": int(JobStatus.QUEUED),
        "progress": None,
        "log": [],
        "meta": {},
        "handler": submission.handler or HANDLER,
        "asynchronous": False,
        "timestamps": [{"status": int(JobStatus.QUEUED), "time": now}],
        "parentId": None,
    }
    job.update(
        (k, storable(v)) for k, v in submission.other_fields.items() if k not in RESERVED_FIELDS
    )
    if parent is not None:
        job["parentId"] = parent
    else:
        job["parentId"] = to_object_id(job["parentId"]) or job["parentId"]  # as Girder queries it
    job["dask"] = dict(dask)
    _set_owner(job, submission, user)
    job["kwargs"] = _serialised(job["kwargs"])
    _announce_new(job, submission)
    # The id comes last: handlers recognise a new document by its missing id.
    job["_id"] = ObjectId()
    _fit(job, submission)
    return job


def start_fields(not_before: float | None) -> dict[str, datetime]:
    """Return the field of ``dask`` with the earliest start of a job, if it has one.

    >>> start_fields(None), start_fields(1_800_000_000.0)["not_before"].isoformat()
    ({}, '2027-01-15T08:00:00+00:00')
    """
    if not_before is None:
        return {}
    return {"not_before": datetime.fromtimestamp(math.floor(not_before), timezone.utc)}


def _set_owner(job: dict[str, Any], submission: Submission, user: Mapping[str, Any] | None) -> None:
    if user is not None and not (isinstance(user, Mapping) and "_id" in user):
        raise SubmissionError(
            f"{submission.task} was started with girder_user={user!r:.100}, which is not the "
            "document of a user. Give one, for example User().load(id, force=True). No job was "
            "created.",
            task=submission.task,
        )
    Job().setPublic(job, public=bool(submission.public))
    job["userId"] = None if user is None else user["_id"]
    if user is not None:
        Job().setUserAccess(job, user=user, level=AccessType.ADMIN)


def _shown_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    # The arguments are stored as JSON, so a name need not be a valid key of MongoDB.
    return {clean_text(str(name)): storable(value) for name, value in kwargs.items()}


def _serialised(kwargs: Any) -> str:
    """Return ``kwargs`` as ``Job().save`` stores them, in a form that Girder can read back."""
    text: str = json_util.dumps(kwargs)
    if "$" in text and not _reads_back(text, kwargs):
        text = json_util.dumps({"…": _short.repr(kwargs)})
    return text


def _reads_back(text: str, kwargs: Any) -> bool:
    """Return True if Girder reads serialised ``kwargs`` as a mapping with the same names.

    ``{"$oid": "5"}`` stands for an ObjectId but is invalid. ``{"$numberDouble": "NaN"}`` stands
    for a number that no response of Girder can contain.
    """
    try:
        read = json_util.loads(text)
    except Exception:  # noqa: BLE001 - constructors of BSON types raise errors of many kinds
        return False
    return isinstance(read, dict) and isinstance(kwargs, Mapping) and read.keys() == kwargs.keys()


def _announce_new(job: dict[str, Any], submission: Submission) -> None:
    for name in ("model.job.validate", "model.job.save"):
        if trigger_others(name, job) and name == "model.job.save":
            raise SubmissionError(
                f"A plugin of this Girder does not let a job of {submission.task} be saved. "
                "No job was created.",
                task=submission.task,
            )


def announce_saved(job: dict[str, Any]) -> None:
    """Trigger ``model.job.save.created`` and ``model.job.save.after`` for a new document."""
    for name in ("model.job.save.created", "model.job.save.after"):
        trigger_others(name, job)


def _fit(job: dict[str, Any], submission: Submission) -> None:
    try:
        size = len(bson.encode(job))
        if size > MAX_SHOWN_BYTES and _shown_bytes(job) > MAX_SHOWN_BYTES:
            # The shown arguments may be cut; the arguments themselves are in the payload.
            job["args"] = [_short.repr(job["args"])]
            job["kwargs"] = json_util.dumps({"…": job["kwargs"][:1000]})
            size = len(bson.encode(job))
    except UNSTORABLE as e:
        raise SubmissionError(
            f"The fields of the job of {submission.task} cannot be stored: {describe_error(e)}. "
            "No job was created.",
            task=submission.task,
        ) from e
    if size > MAX_JOB_BYTES:
        raise SubmissionError(
            f"The fields given for the job of {submission.task} (girder_job_other_fields) take "
            f"{size:,} bytes, more than the {MAX_JOB_BYTES:,} that a job holds. "
            "No job was created.",
            task=submission.task,
        )


def _shown_bytes(job: Mapping[str, Any]) -> int:
    return len(bson.encode({name: job[name] for name in ("args", "kwargs")}))


def storable(value: Any, _level: int = 0) -> Any:
    """Return ``value`` as MongoDB can store it: parts that it cannot store become their ``repr``.

    >>> storable({"a": (1, 2**80), "b": {3}, "c": float("nan")})
    {'a': [1, '1208925819614629174706176'], 'b': '{3}', 'c': 'nan'}
    """
    if isinstance(value, _STORABLE_TYPES):
        return value
    if isinstance(value, float):
        # Girder sends strict JSON, and answers 500 to requests for documents with such a number.
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else str(value)
    if _level < MAX_FIELD_LEVELS:
        if isinstance(value, (list, tuple)):
            return [storable(v, _level + 1) for v in value]
        if isinstance(value, Mapping) and all(_is_key(k) for k in value):
            return {k: storable(v, _level + 1) for k, v in value.items()}
    try:
        return clean_text(_short.repr(value))
    except Exception as e:  # noqa: BLE001 - a foreign __repr__ may raise anything
        return f"<{type(value).__qualname__} whose repr raised {type(e).__name__}>"


def _is_key(key: Any) -> bool:
    if not isinstance(key, str) or "\0" in key or key.startswith("$"):
        return False
    return clean_text(key) == key
