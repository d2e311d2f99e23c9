"""The Girder tokens of jobs: one each, scoped, renewed while it is needed."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from girder.constants import AccessType, TokenScope
from girder.models.token import Token
from girder_jobs.constants import REST_CREATE_JOB_TOKEN_SCOPE, REST_LIST_JOB_TOKEN_SCOPE

from girder_dask.plugin.database import insert

__all__ = [
    "LIFETIME",
    "SUBMIT_SCOPE",
    "Pending",
    "build",
    "delete",
    "pending",
    "renew",
    "store",
    "valid_until",
]

#: How long a token is valid without being renewed.
LIFETIME = timedelta(days=7)

#: The scope of tokens that may start jobs, as far as their user may.
SUBMIT_SCOPE = "dask.jobs.submit"

#: What the token of a job may do: read and write data as its owner does, see jobs, and
#: start jobs of its own.
SCOPES = (
    TokenScope.DATA_READ,
    TokenScope.DATA_WRITE,
    SUBMIT_SCOPE,
    REST_CREATE_JOB_TOKEN_SCOPE,
    REST_LIST_JOB_TOKEN_SCOPE,
)

TokenScope.describeScope(
    SUBMIT_SCOPE,
    "Start jobs on Dask",
    "Allows to start jobs on the Dask cluster, as far as the user may start them.",
)


def build(user: Mapping[str, Any] | None, now: datetime) -> dict[str, Any]:
    """Return a new token document as ``Token().createToken`` makes it, not yet stored."""
    token: dict[str, Any] = {
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
    """Store new token documents, all at once."""
    insert(Token().collection, documents)


class Pending:
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
pending = Pending()


def delete(ids: Iterable[str]) -> None:
    """Delete tokens."""
    ids = list(ids)
    if ids:
        Token().collection.delete_many({"_id": {"$in": ids}})


def renew(ids: Iterable[str]) -> None:
    """Give tokens their whole lifetime again. One that is no longer there stays away."""
    ids = list(ids)
    if ids:
        Token().collection.update_many(
            {"_id": {"$in": ids}},
            {"$set": {"expires": datetime.now(timezone.utc) + LIFETIME}},
        )


def valid_until(ids: Iterable[str]) -> dict[str, datetime]:
    """Return when tokens expire. One that does not exist is left out."""
    found = Token().collection.find({"_id": {"$in": list(ids)}}, {"expires": 1})
    return {token["_id"]: token["expires"] for token in found}
