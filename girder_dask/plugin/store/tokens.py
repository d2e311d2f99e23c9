"""The Girder tokens of jobs: one each, scoped, renewed while it is needed.

A token's document names its job. Whoever stores a token of a job that exists looks at the job
*afterwards* and deletes the token if the job has ended; whoever ends a job deletes its tokens
afterwards, by the job's id. So none is left in whatever order these happen. What a process leaves
behind that dies in between is found by :func:`sweep`.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from bson import ObjectId
from girder.constants import AccessType, TokenScope
from girder.models.token import Token
from girder_jobs.constants import REST_LIST_JOB_TOKEN_SCOPE
from girder_jobs.models.job import Job
from pymongo import ReadPreference

from girder_dask.jobs import FINAL
from girder_dask.plugin.store.database import batches, insert
from girder_dask.protocol.names import SUBMIT_SCOPE

__all__ = [
    "LIFETIME",
    "PendingTokens",
    "build",
    "delete",
    "delete_ended",
    "ensure_index",
    "load_expiry",
    "pending",
    "renew",
    "store",
    "store_of_existing",
    "sweep",
]

#: How long a token is valid without being renewed.
LIFETIME = timedelta(days=7)


#: What the token of a job may do: read and write data as its owner does, see jobs, and
#: start jobs of its own. Not ``jobs.rest.create_job``, which Girder keeps from its users: the
#: route that asks for it takes any field of a job document.
SCOPES = (
    TokenScope.DATA_READ,
    TokenScope.DATA_WRITE,
    SUBMIT_SCOPE,
    REST_LIST_JOB_TOKEN_SCOPE,
)

TokenScope.describeScope(
    SUBMIT_SCOPE,
    "Start jobs on Dask",
    "Allows to start jobs on the Dask cluster, as far as the user may start them.",
)


#: The field of a token's document that names its job, and the index over it.
JOB_FIELD = "dask_job"
JOB_INDEX = "dask_job"

#: How long a job may take to be recorded after its token.
RECORD_TIMEOUT = timedelta(minutes=10)

# Jobs that are looked up at once.
_BATCH_SIZE = 1_000


def ensure_index() -> None:
    """Make the index over the tokens that belong to jobs."""
    Token().ensureIndex(([(JOB_FIELD, 1)], {"name": JOB_INDEX, "sparse": True}))


def build(user: Mapping[str, Any] | None, now: datetime, job_id: ObjectId) -> dict[str, Any]:
    """Return a new token document as ``Token().createToken`` makes it, not yet stored."""
    token: dict[str, Any] = {
        JOB_FIELD: job_id,
        # As long as Girder's own. Those take a call of the system for each character.
        "_id": secrets.token_hex(32),
        "created": now,
        "expires": now + LIFETIME,
        "scope": list(SCOPES),
    }
    if user is None:
        Token().setPublic(token, True, save=False)
    else:
        token["userId"] = user["_id"]
        Token().setUserAccess(token, user=user, level=AccessType.ADMIN, save=False)
    return token


def store(documents: Sequence[Mapping[str, Any]]) -> None:
    """Store new token documents of jobs that are yet to be recorded, all at once."""
    insert(Token().collection, documents)


def store_of_existing(documents: Sequence[Mapping[str, Any]]) -> None:
    """Store new token documents of jobs that are there, but none of a job that has ended."""
    store(documents)
    delete_ended([document[JOB_FIELD] for document in documents])


def delete_ended(job_ids: Collection[ObjectId]) -> None:
    """Delete the tokens of those of the jobs that have ended or are gone."""
    if job_ids:
        delete(of=set(job_ids) - _find_open(job_ids))


def _find_open(job_ids: Iterable[ObjectId]) -> set[ObjectId]:
    found = _primary(Job()).find({"_id": {"$in": list(job_ids)}, "dask.open": True}, {"_id": True})
    return {job["_id"] for job in found}


def _primary(model: Any) -> Any:
    # An end that this process has not heard of decides.
    return model.collection.with_options(read_preference=ReadPreference.PRIMARY)


class PendingTokens:
    """Tokens of new jobs that are stored when the jobs are sent, many at once.

    Who starts a job need not wait for that: no one uses the token before. One that is never
    stored, since this process has ended, is made again when a scheduler claims the job. Any
    thread may use it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._documents: dict[str, Mapping[str, Any]] = {}

    def put(self, documents: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep token documents, by the ids of their jobs."""
        with self._lock:
            self._documents |= documents

    def take(self, job_ids: Iterable[Any]) -> list[Mapping[str, Any]]:
        """Return the documents that are kept for jobs, and keep them no more."""
        with self._lock:
            return [
                document
                for job_id in job_ids
                if (document := self._documents.pop(str(job_id), None)) is not None
            ]

    def __contains__(self, job_id: Any) -> bool:
        return str(job_id) in self._documents


#: Those of the jobs that this process has recorded and not sent yet.
pending = PendingTokens()


def delete(ids: Iterable[str] = (), *, of: Iterable[ObjectId] = ()) -> None:
    """Delete tokens by their ids, and those ``of`` jobs by the ids of these."""
    ids, jobs = list(ids), list(of)
    which: list[dict[str, Any]] = [{"_id": {"$in": ids}}] if ids else []
    which += [{JOB_FIELD: {"$in": jobs}}] if jobs else []
    if which:
        Token().collection.delete_many({"$or": which} if len(which) > 1 else which[0])


def sweep(now: datetime) -> int:
    """Delete the tokens whose job has ended or is gone, and return how many there were.

    One that is younger than :data:`RECORD_TIMEOUT` may belong to a job that is being recorded.
    """
    found = _primary(Token()).find({JOB_FIELD: {"$exists": True}}, {JOB_FIELD: 1, "created": 1})
    count = 0
    for some in batches(found.hint(JOB_INDEX), _BATCH_SIZE):
        jobs = {token[JOB_FIELD] for token in some}
        fields = {"status": True, "dask.open": True}
        states = {
            job["_id"]: job for job in _primary(Job()).find({"_id": {"$in": [*jobs]}}, fields)
        }
        left = [
            token["_id"]
            for token in some
            if _is_left(states.get(token[JOB_FIELD]), now - token["created"])
        ]
        delete(left)
        count += len(left)
    return count


def _is_left(job: Mapping[str, Any] | None, age: timedelta) -> bool:
    if job is not None and (job.get("dask") or {}).get("open"):
        return False
    return age > RECORD_TIMEOUT or (job is not None and job["status"] in FINAL)


def renew(ids: Iterable[str]) -> None:
    """Give tokens their whole lifetime again. One that is no longer there stays away."""
    ids = list(ids)
    if ids:
        Token().collection.update_many(
            {"_id": {"$in": ids}},
            {"$set": {"expires": datetime.now(timezone.utc) + LIFETIME}},
        )


def load_expiry(ids: Iterable[str]) -> dict[str, datetime]:
    """Return when tokens expire. One that does not exist is left out."""
    found = Token().collection.find({"_id": {"$in": list(ids)}}, {"expires": 1})
    return {token["_id"]: token["expires"] for token in found}
