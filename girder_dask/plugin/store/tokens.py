"""Girder tokens of jobs: one for each, with few scopes, renewed while the job needs it.

The document of a token names its job. Whoever stores a token of an existing job checks the job
*afterwards* and deletes the token if the job has ended. Whoever ends a job deletes its tokens
afterwards, by the job's id. So no token is left behind, in whatever order these steps happen.
:func:`sweep` deletes the tokens of processes that died in between.
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

#: How long a token is valid without renewal.
LIFETIME = timedelta(days=7)


#: What the token of a job may do: read and write data as its owner, see jobs, and start jobs.
#: ``jobs.rest.create_job`` is not among them: Girder grants it to no user, since its route accepts
#: any field of a job document.
SCOPES = (
    TokenScope.DATA_READ,
    TokenScope.DATA_WRITE,
    SUBMIT_SCOPE,
    REST_LIST_JOB_TOKEN_SCOPE,
)

TokenScope.describeScope(
    SUBMIT_SCOPE,
    "Start jobs on Dask",
    "Allows clients to start the jobs on the Dask cluster that the user may start.",
)


#: The field of a token's document that names its job, and the index over it.
JOB_FIELD = "dask_job"
JOB_INDEX = "dask_job"

#: How long a job may take to be recorded after its token was stored.
RECORD_TIMEOUT = timedelta(minutes=10)

# The most tokens or jobs of one query.
_MAX_PER_QUERY = 1_000


def ensure_index() -> None:
    """Create the index over the tokens that belong to jobs."""
    Token().ensureIndex(([(JOB_FIELD, 1)], {"name": JOB_INDEX, "sparse": True}))


def build(user: Mapping[str, Any] | None, now: datetime, job_id: ObjectId) -> dict[str, Any]:
    """Return a new token document, as ``Token().createToken`` builds it, without storing it."""
    token: dict[str, Any] = {
        JOB_FIELD: job_id,
        # As long as Girder's own ids, but made without a system call for each character.
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
    """Store new tokens of jobs that are yet to be recorded, all at once."""
    insert(Token().collection, documents)


def store_of_existing(documents: Sequence[Mapping[str, Any]]) -> None:
    """Store new tokens of recorded jobs, but none of a job that has ended."""
    store(documents)
    delete_ended([document[JOB_FIELD] for document in documents])


def delete_ended(job_ids: Collection[ObjectId]) -> None:
    """Delete the tokens of those jobs that have ended or no longer exist."""
    if job_ids:
        delete(of=set(job_ids) - _find_open(job_ids))


def _find_open(job_ids: Iterable[ObjectId]) -> set[ObjectId]:
    found = _primary(Job()).find({"_id": {"$in": list(job_ids)}, "dask.open": True}, {"_id": True})
    return {job["_id"] for job in found}


def _primary(model: Any) -> Any:
    # A secondary may not know yet that a job has ended.
    return model.collection.with_options(read_preference=ReadPreference.PRIMARY)


class PendingTokens:
    """Tokens of new jobs that are stored when the jobs are sent, many at once. Thread-safe.

    A submission need not wait until a token is stored, since nothing uses the token earlier. If
    this process ends before that, the claim of the job creates another token.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._documents: dict[str, Mapping[str, Any]] = {}

    def put(self, documents: Mapping[str, Mapping[str, Any]]) -> None:
        """Add token documents, by the ids of their jobs."""
        with self._lock:
            self._documents |= documents

    def take(self, job_ids: Iterable[Any]) -> list[Mapping[str, Any]]:
        """Remove and return the documents of jobs."""
        with self._lock:
            return [
                document
                for job_id in job_ids
                if (document := self._documents.pop(str(job_id), None)) is not None
            ]

    def __contains__(self, job_id: Any) -> bool:
        return str(job_id) in self._documents


#: The tokens of jobs that this process has recorded and not sent yet.
pending = PendingTokens()


def delete(ids: Iterable[str] = (), *, of: Iterable[ObjectId] = ()) -> None:
    """Delete tokens by their ids, and the tokens ``of`` jobs by the ids of the jobs."""
    ids, jobs = list(ids), list(of)
    which: list[dict[str, Any]] = [{"_id": {"$in": ids}}] if ids else []
    which += [{JOB_FIELD: {"$in": jobs}}] if jobs else []
    if which:
        Token().collection.delete_many({"$or": which} if len(which) > 1 else which[0])


def sweep(now: datetime) -> int:
    """Delete the tokens whose job has ended or no longer exists, and return their number.

    A token younger than :data:`RECORD_TIMEOUT` may belong to a job that is being recorded.
    """
    found = _primary(Token()).find({JOB_FIELD: {"$exists": True}}, {JOB_FIELD: 1, "created": 1})
    count = 0
    for some in batches(found.hint(JOB_INDEX), _MAX_PER_QUERY):
        jobs = {token[JOB_FIELD] for token in some}
        fields = {"status": True, "dask.open": True}
        states = {
            job["_id"]: job for job in _primary(Job()).find({"_id": {"$in": [*jobs]}}, fields)
        }
        orphaned = [
            token["_id"]
            for token in some
            if _is_orphaned(states.get(token[JOB_FIELD]), now - token["created"])
        ]
        delete(orphaned)
        count += len(orphaned)
    return count


def _is_orphaned(job: Mapping[str, Any] | None, age: timedelta) -> bool:
    if job is not None and (job.get("dask") or {}).get("open"):
        return False
    return age > RECORD_TIMEOUT or (job is not None and job["status"] in FINAL)


def renew(ids: Iterable[str]) -> None:
    """Restart the lifetime of tokens. Tokens that were deleted stay deleted."""
    ids = list(ids)
    if ids:
        Token().collection.update_many(
            {"_id": {"$in": ids}},
            {"$set": {"expires": datetime.now(timezone.utc) + LIFETIME}},
        )


def load_expiry(ids: Iterable[str]) -> dict[str, datetime]:
    """Return when tokens expire. Tokens that do not exist are left out."""
    found = Token().collection.find({"_id": {"$in": list(ids)}}, {"expires": 1})
    return {token["_id"]: token["expires"] for token in found}
