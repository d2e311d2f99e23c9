"""Requester: the user, running job or scheduler that sends a request."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import cherrypy
from girder.api.rest import getCurrentToken, getCurrentUser
from girder.constants import AccessType
from girder.exceptions import AccessException
from girder.models.token import Token
from girder.models.user import User
from girder_jobs.models.job import Job

from girder_dask.plugin.store import job_records
from girder_dask.protocol.names import SCHEDULER_SCOPE

__all__ = ["Requester", "identify", "identify_reader", "is_run_of", "may_access"]

logger = logging.getLogger(__name__)

_LEVELS = {AccessType.READ: "Read", AccessType.WRITE: "Write", AccessType.ADMIN: "Admin"}


@dataclass(frozen=True, slots=True)
class Requester:
    """The sender of a request.

    Attributes
    ----------
    user
        The user, if the token has a scope that the route asks for. For a running job, its owner.
    job
        The running job, if the token is its own.
    is_scheduler
        True if the token belongs to a scheduler's credential.
    token
        The id of the token, if that is valid.
    """

    user: dict[str, Any] | None = field(default=None, repr=False)
    job: dict[str, Any] | None = field(default=None, repr=False)
    is_scheduler: bool = False
    token: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The name of the requester in messages."""
        return f"User '{self.user['login']}'" if self.user else "A user who is not logged in"

    def runs(self, job: dict[str, Any]) -> bool:
        """Return True if the requester is this running job."""
        return self.job is not None and self.job["_id"] == job["_id"]

    def has_token_of(self, job: dict[str, Any]) -> bool:
        """Return True if the token is that of the running job, its own or one that it was given.

        A token that a job was given lets it report on its own attempt. Everything else depends on
        the user of the token.
        """
        if self.runs(job):
            return True
        return (
            self.token is not None
            and job_records.find_running_job(self.token, job["_id"]) is not None
        )

    def may(self, job: dict[str, Any], level: int) -> bool:
        """Return True if the requester has a level of access to a job."""
        return may_access(job, self.user, level)

    def require(self, job: dict[str, Any], level: int) -> None:
        """Raise AccessException unless the requester has a level of access to a job."""
        if not self.may(job, level):
            raise AccessException(
                f"{_LEVELS[level]} access denied for job {job['_id']}. {self.name} may not use "
                "it; ask its owner or an administrator of this Girder for access."
            )


def may_access(job: Mapping[str, Any], user: Mapping[str, Any] | None, level: int) -> bool:
    """Return True if a user has a level of access to a job.

    If the field ``access`` of the job is malformed, only administrators have access.
    """
    try:
        return bool(Job().hasAccess(job, user, level))
    except (AttributeError, KeyError, TypeError, ValueError):
        logger.warning(
            "The field access of job %s is malformed: only admins may use it", job["_id"]
        )
        return bool(user and user.get("admin"))


def identify() -> Requester:
    """Return the sender of the current request."""
    user, token = getCurrentUser(), getCurrentToken()
    # Girder's own look-up also returns tokens that have expired.
    if token is None or token["expires"] < datetime.now(timezone.utc):
        return Requester(user)
    job = job_records.find_running_job(token["_id"])
    return Requester(user, job, _is_scheduler(token), token["_id"])


def identify_reader() -> Requester:
    """Return the sender of a request whose answer leaves out what the sender may not read.

    Girder takes a request with a token that was revoked or has expired for one without a token, and
    all that the sender asks for would seem not to exist.

    Raises
    ------
    AccessException
        If the request has such a token, or that of a scheduler whose owner is no administrator.
    """
    requester, token = identify(), getCurrentToken()
    if token is None:
        is_valid = not _names_token()
    elif token["expires"] < datetime.now(timezone.utc):
        is_valid = False
    else:
        is_valid = requester.is_scheduler or SCHEDULER_SCOPE not in token.get("scope", ())
    if not is_valid:
        raise AccessException(
            "The token of this request is not valid: it was revoked, it has expired, or it is that "
            "of a scheduler whose owner is no administrator. Log in again, or use another API key."
        )
    return requester


def _names_token() -> bool:
    """Return True if the request has a token, valid or not."""
    return "token" in cherrypy.request.params or "Girder-Token" in cherrypy.request.headers


def is_run_of(job_id: str) -> bool:
    """Return True if the current request has the valid token of a job that Dask has.

    It asks the database less than :func:`identify`, and does not tell whether the job has ended:
    its token is deleted soon after.
    """
    token = getCurrentToken()
    if token is None or token["expires"] < datetime.now(timezone.utc):
        return False
    return job_records.has_token(job_id, token["_id"])


def _is_scheduler(token: dict[str, Any]) -> bool:
    if "userId" not in token or not Token().hasScope(token, SCHEDULER_SCOPE):
        return False
    user = User().load(token["userId"], force=True)
    # The credential of a user who is no longer an administrator does not count.
    return user is not None and bool(user["admin"])
