"""What may be started over REST, and by whom.

A pickled call runs code of whoever made it as soon as a worker opens it, so only those
who may run code of their own on the cluster can submit one. A plain call names a task
that is installed on the workers, and holds nothing but values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from bson import ObjectId
from bson.errors import InvalidId
from girder.constants import AccessType
from girder.exceptions import AccessException, RestException
from girder.models.group import Group as GirderGroup
from girder_jobs.models.job import Job

from girder_dask import config
from girder_dask.jobs import JobStatus, from_json
from girder_dask.payload import is_plain
from girder_dask.plugin import records, settings
from girder_dask.plugin.documents import OURS
from girder_dask.plugin.requester import Requester
from girder_dask.submit import Group, Submission

__all__ = ["admit", "read_group", "read_submissions"]

#: The fields of a job document that ``other_fields`` of a call over REST does not set,
#: because other parts rely on them or because they grant something.
RESERVED = frozenset(
    {
        *OURS,
        *("args", "created", "handler", "kwargs", "log", "parentId"),
        *("progress", "public", "publicFlags", "title", "type"),
        *("updated", "userId", "when", "interval", "asynchronous", "jobInfoSpec"),
    }
)

_STOPPING = (JobStatus.CANCELING, JobStatus.CANCELED)


# -- who --------------------------------------------------------------------------------------


def admit(requester: Requester, submissions: Iterable[Submission]) -> bool:
    """Raise AccessException unless the one who asks may start all of some calls.

    A job at work may start for its owner what those may who started it.

    Returns
    -------
    bool
        Whether they may run code of their own, so that any call will do.
    """
    if requester.job is not None:
        if requester.job["status"] in _STOPPING:
            raise AccessException(
                f"Job {requester.job['_id']} is being canceled, so it can start no more jobs."
            )
        trusted, who = records.is_trusted(requester.job["_id"]), f"Job {requester.job['_id']}"
    elif requester.user is None:
        raise AccessException(
            "You must be logged in to start jobs on Dask, with an API key or a token that has all "
            "rights or the scope dask.jobs.submit, for example girder_dask.connect(api_url, "
            "api_key=…)."
        )
    else:
        trusted, who = may_submit_code(requester.user), f"User '{requester.user['login']}'"
    for submission in () if trusted else submissions:
        reason = _refusal(submission)
        if reason is not None:
            raise AccessException(f"{who} may not start {submission.task} on Dask: {reason}")
    return trusted


def may_submit_code(user: Mapping[str, Any]) -> bool:
    """Say whether a user may run code of their own on the cluster."""
    group = settings.submitters()
    return bool(user.get("admin")) or (group is not None and group in user.get("groups", ()))


def _refusal(submission: Submission) -> str | None:
    """Return why one who may not submit code may not submit this call either."""
    if not _is_allowed(submission.task):
        return (
            f"only {_who()} may start it from outside Girder. Ask an administrator of this Girder "
            "to be let in (its setting dask.submitters), or to allow the task to everybody "
            "(dask.allow_tasks)."
        )
    if not is_plain(submission.payload):
        return (
            "its arguments or its function are pickled, and opening a pickle runs code, which "
            f"only {_who()} may do. Pass plain values: numbers, text, lists, mappings, dates, "
            "and the transforms of girder_dask."
        )
    if submission.api_url is not None:
        return f"only {_who()} may name another Girder (girder_api_url). Leave it out."
    return None


def _is_allowed(task: str) -> bool:
    allowed = settings.allow_tasks()
    if isinstance(allowed, bool):
        return allowed
    return any(fnmatchcase(task, pattern) for pattern in allowed)


def _who() -> str:
    group_id = settings.submitters()
    group = GirderGroup().load(group_id, force=True) if group_id is not None else None
    if group is None:
        return "site administrators"
    name = f"the group '{group['name']}'" if group.get("public") else "a group of users"
    return f"site administrators and {name}"


# -- what -------------------------------------------------------------------------------------


def read_submissions(wires: Any, requester: Requester) -> list[Submission]:
    """Read the calls in the body of a request.

    Raises
    ------
    RestException
        If one cannot be read or makes no sense; it says which, and why.
    AccessException
        If one names a parent that is not the user's.
    """
    if not isinstance(wires, list):
        raise RestException("The body has no list of submissions.")
    return [_read(Submission, wire, n, requester) for n, wire in enumerate(wires, 1)]


def read_group(wire: Any, requester: Requester) -> Group | None:
    """Read the parent job in the body of a request, if there is one; raises the same."""
    return None if wire is None else _read(Group, wire, None, requester)


def _read(kind: type[Any], wire: Any, number: int | None, requester: Requester) -> Any:
    what = "The group" if number is None else f"Submission {number}"
    if not isinstance(wire, dict):
        raise RestException(f"{what} is not a JSON object.")
    wire = dict(wire)
    wire.pop("user", None)  # it is whoever asks
    try:
        value = kind.from_wire(from_json(wire))
        _check(value)
        return _with_parent(value, requester)
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise RestException(f"{what} cannot be read: {e}") from e


def _check(value: Submission | Group) -> None:
    for name, (is_right, expected) in _FIELDS.items():
        if hasattr(value, name) and not is_right(getattr(value, name)):
            raise ValueError(f"its field {name!r} must be {expected}")
    wrong = sorted(RESERVED.intersection(value.other_fields) - {"parentId"})
    if wrong:
        raise ValueError(f"its other_fields must not set {', '.join(wrong)}")
    limit = config.nbytes("max-payload")
    if isinstance(value, Submission) and len(value.payload) > limit:
        raise ValueError(
            f"the packed call of {value.task} takes {len(value.payload):,} bytes, more than the "
            f"{limit:,} that are stored with a job (girder.max-payload in Girder's Dask "
            "configuration). Upload large data to Girder and pass its id"
        )


def _with_parent(value: Any, requester: Requester) -> Any:
    """Check a parent that a call names itself: it must be a job that the user may change."""
    given = value.other_fields.get("parentId")
    if given is None:
        return value
    parent = Job().load(ObjectId(given), force=True) if _is_id(given) else None
    if parent is None:
        raise ValueError(f"there is no job {given!r}, which it names as its parent")
    requester.require(parent, AccessType.WRITE)
    return replace(value, other_fields={**value.other_fields, "parentId": parent["_id"]})


def _is_id(value: Any) -> bool:
    try:
        ObjectId(value)
    except (InvalidId, TypeError):
        return False
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_task(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 1_000 and all(value.partition(":"))


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_optional_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _are_resources(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict) and all(_is_number(v) and v >= 0 for v in value.values())
    )


_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "task": (_is_task, "the name of a task, package.module:function"),
    "payload": (lambda v: isinstance(v, bytes) and v[:1] in (b"j", b"p"), "a packed call"),
    "package": (_is_optional_text, "text or null"),
    "args": (lambda v: isinstance(v, (list, tuple)), "a list"),
    "kwargs": (lambda v: isinstance(v, dict), "an object"),
    "title": (_is_text, "text"),
    "type": (_is_text, "text"),
    "public": (_is_truth, "true or false"),
    "handler": (_is_optional_text, "text or null"),
    "other_fields": (lambda v: isinstance(v, dict), "an object"),
    "token": (_is_optional_text, "text or null"),
    "api_url": (_is_optional_text, "text or null"),
    "retries": (_is_count, "a number of tries, 0 or more"),
    "timeout": (lambda v: v is None or (_is_number(v) and v > 0), "a number of seconds, or null"),
    "resources": (_are_resources, "an object of numbers, or null"),
    "priority": (
        lambda v: isinstance(v, int) and not isinstance(v, bool) and abs(v) < 2**31,
        "a whole number",
    ),
    "isolation": (lambda v: v in (None, "thread", "process"), "'thread', 'process' or null"),
    "at_most_once": (_is_truth, "true or false"),
    "dependencies": (
        lambda v: isinstance(v, (list, tuple)) and all(_is_id(job_id) for job_id in v),
        "a list of ids of jobs",
    ),
}
