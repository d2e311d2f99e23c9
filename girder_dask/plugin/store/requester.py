"""Who makes a request: a user, a job that runs, or a scheduler."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from girder.api.rest import getCurrentToken, getCurrentUser
from girder.constants import AccessType
from girder.exceptions import AccessException
from girder.models.token import Token
from girder.models.user import User
from girder_jobs.models.job import Job

from girder_dask.plugin.store import job_records
from girder_dask.protocol.names import SCHEDULER_SCOPE

__all__ = ["Requester", "identify", "may_access"]

logger = logging.getLogger(__name__)

_LEVELS = {AccessType.READ: "Read", AccessType.WRITE: "Write", AccessType.ADMIN: "Admin"}


@dataclass(frozen=True, slots=True)
class Requester:
    """Who makes a request.

    Attributes
    ----------
    user
        The user, as far as the token has a scope that the route asks for. For a job that
        runs, its owner.
    job
        The job that runs, if the token is its own.
    is_scheduler
        Whether the token is that of a scheduler's credential.
    token
        The id of the token, if it is valid.
    """

    user: dict[str, Any] | None = field(default=None, repr=False)
    job: dict[str, Any] | None = field(default=None, repr=False)
    is_scheduler: bool = False
    token: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """What messages call them."""
        return f"User '{self.user['login']}'" if self.user else "Who is not logged in"

    def runs(self, job: dict[str, Any]) -> bool:
        """Say whether this is the job itself, at work."""
        return self.job is not None and self.job["_id"] == job["_id"]

    def has_token_of(self, job: dict[str, Any]) -> bool:
        """Say whether the token is that of the job at work, its own or one that it was given.

        One that it was given lets it speak of its own attempt. Anything else is up to the
        user of the token.
        """
        if self.runs(job):
            return True
        return (
            self.token is not None
            and job_records.find_running_job(self.token, job["_id"]) is not None
        )

    def may(self, job: dict[str, Any], level: int) -> bool:
        """Say whether they have some access to a job."""
        return may_access(job, self.user, level)

    def require(self, job: dict[str, Any], level: int) -> None:
        """Raise AccessException unless they have some access to a job."""
        if not self.may(job, level):
            raise AccessException(
                f"{_LEVELS[level]} access denied for job {job['_id']}. {self.name} may not use "
                "it; ask its owner or an administrator of this Girder for access."
            )


def may_access(job: Mapping[str, Any], user: Mapping[str, Any] | None, level: int) -> bool:
    """Return whether a user has some access to a job. Nobody has where that is malformed."""
    try:
        return bool(Job().hasAccess(job, user, level))
    except (AttributeError, KeyError, TypeError, ValueError):
        logger.warning("Who may use job %s is not known: its field access is malformed", job["_id"])
        return bool(user and user.get("admin"))


def identify() -> Requester:
    """Find out who makes this request."""
    user, token = getCurrentUser(), getCurrentToken()
    # Girder's own look-up of tokens takes those that have expired as well.
    if token is None or token["expires"] < datetime.now(timezone.utc):
        return Requester(user)
    job = job_records.find_running_job(token["_id"])
    return Requester(user, job, _is_scheduler(token), token["_id"])


def _is_scheduler(token: dict[str, Any]) -> bool:
    if "userId" not in token or not Token().hasScope(token, SCHEDULER_SCOPE):
        return False
    user = User().load(token["userId"], force=True)
    # The credential of an administrator who is one no more is worth nothing.
    return user is not None and bool(user["admin"])
