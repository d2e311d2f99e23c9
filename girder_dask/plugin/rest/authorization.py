"""Authorization of submissions: who may start which calls.

A pickled call runs code of its author as soon as a worker opens it, so only users who may run code
of their own on the cluster can submit one. A plain call names a task that is installed on the
workers and holds only values.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from girder.exceptions import AccessException

from girder_dask.jobs import JobStatus
from girder_dask.plugin import settings
from girder_dask.plugin.rest import option_limits
from girder_dask.plugin.store.access.authority import Authority, of_job, of_user, who_may
from girder_dask.plugin.store.access.requester import Requester
from girder_dask.protocol.messages import MapParent, Submission
from girder_dask.protocol.payload import is_plain

__all__ = ["authorize", "refusal"]

_STOPPING = (JobStatus.CANCELING, JobStatus.CANCELED)


def authorize(
    requester: Requester, submissions: Iterable[Submission], group: MapParent | None = None
) -> Authority:
    """Return the authority under which calls become jobs, or raise AccessException.

    The token of a job may start what the owner of the job may, and plain calls of the tasks of
    its own package if code inside Girder has started the job.
    """
    authority, who = _authority(requester)
    if authority.runs_code:
        return authority
    for call in (*(() if group is None else (group,)), *submissions):
        reason = refusal(call, authority)
        if reason is not None:
            what = call.task if isinstance(call, Submission) else f"the map {call.title!r:.100}"
            raise AccessException(f"{who} may not start {what} on Dask: {reason}")
    return authority


def _authority(requester: Requester) -> tuple[Authority, str]:
    """Return the authority of a request, and its subject for error messages."""
    job = requester.job
    if job is not None:
        if job["status"] in _STOPPING:
            raise AccessException(f"Job {job['_id']} is being canceled, so it cannot start jobs.")
        return of_job(job), f"Job {job['_id']}"
    if requester.user is None:
        raise AccessException(
            "You must be logged in to start jobs on Dask, with an API key or a token that has all "
            "rights or the scope dask.jobs.submit, for example girder_dask.connect(api_url, "
            "api_key=…)."
        )
    return of_user(requester.user), f"User '{requester.user['login']}'"


def refusal(call: Submission | MapParent, authority: Authority) -> str | None:
    """Return why a requester who may not run code of their own may not submit this call."""
    if call.task is not None and not (
        _is_allowed(call.task) or authority.is_in_same_package(call.task)
    ):
        return (
            f"only {who_may()} may start it from outside Girder. Ask an administrator of this "
            "Girder to add you to the group of its setting dask.submitters, or to allow the task "
            "for all users (dask.allow_tasks). A job that a plugin of Girder has started may start "
            "the tasks of its own package, too."
        )
    if isinstance(call, Submission) and not is_plain(call.payload):
        return (
            "its arguments or its function are pickled, and opening a pickle runs code, which "
            f"only {who_may()} may do. Pass plain values: numbers, text, lists, mappings, "
            "dates, and the transforms of girder_dask."
        )
    excess = option_limits.find_excess(call, any_field=_is_in_same_package(call, authority))
    return None if excess is None else f"{excess}. Only {who_may()} may ask for that."


def _is_in_same_package(call: Submission | MapParent, authority: Authority) -> bool:
    """Return True if the task of a call is in the package of the job that makes the call."""
    return (
        bool(authority.modules)
        if isinstance(call, MapParent)
        else authority.is_in_same_package(call.task)
    )


def _is_allowed(task: str) -> bool:
    allowed = settings.allow_tasks()
    if isinstance(allowed, bool):
        return allowed
    return any(fnmatchcase(task, pattern) for pattern in allowed)
