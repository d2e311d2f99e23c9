"""Submissions in the bodies of requests, read and checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from girder.constants import AccessType
from girder.exceptions import RestException
from girder_jobs.models.job import Job

from girder_dask import config
from girder_dask.plugin.rest.reserved_fields import RESERVED_FIELDS, find_reserved
from girder_dask.plugin.store.database import to_object_id
from girder_dask.plugin.store.requester import Requester
from girder_dask.protocol.messages import MapParent, Submission, from_json

__all__ = ["read_group", "read_submissions"]

# More than any number is.
_MOST, _COUNT = 1e300, 2**31
# Characters of what is no more than a name or a token.
_MOST_LINE = 500
# Logs, keys of Dask and pages have it.
_TASK = re.compile(r"[\w.-]+:(?:[\w.]|<locals>|<lambda>)+")


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


def read_group(wire: Any, requester: Requester) -> MapParent | None:
    """Read the parent job in the body of a request, if there is one; raises the same."""
    return None if wire is None else _read(MapParent, wire, None, requester)


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


def _check(value: Submission | MapParent) -> None:
    for name, (is_right, expected) in _FIELDS.items():
        if hasattr(value, name) and not is_right(getattr(value, name)):
            raise ValueError(f"its field {name!r} must be {expected}")
    wrong = find_reserved(value.other_fields, RESERVED_FIELDS - {"parentId"})
    if wrong:
        raise ValueError(f"its other_fields must not set {', '.join(wrong)[:200]}")
    if isinstance(value, Submission) and value.at_most_once and value.retries:
        raise ValueError("with at_most_once its retries must be 0")
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
    parent_id = to_object_id(given)
    parent = None if parent_id is None else Job().load(parent_id, force=True)
    if parent is None:
        raise ValueError(f"there is no job {given!r}, which it names as its parent")
    requester.require(parent, AccessType.WRITE)
    return replace(value, other_fields={**value.other_fields, "parentId": parent["_id"]})


def _is_number(value: Any) -> bool:
    # Not with math.isfinite, which an integer of many digits overflows.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _MOST


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _COUNT


def _is_task(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 1_000 and _TASK.fullmatch(value) is not None


def _is_optional_line(value: Any) -> bool:
    return value is None or (
        isinstance(value, str) and len(value) <= _MOST_LINE and value.isprintable()
    )


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_optional_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != "" and value.isprintable()


def _are_resources(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and all(map(_is_name, value))
        and all(_is_number(v) and v > 0 for v in value.values())
    )


_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "task": (_is_task, "the name of a task, package.module:function"),
    "payload": (lambda v: isinstance(v, bytes) and v[:1] in (b"j", b"p"), "a packed call"),
    "package": (_is_optional_line, f"a line of {_MOST_LINE} characters at most, or null"),
    "args": (lambda v: isinstance(v, (list, tuple)), "a list"),
    "kwargs": (lambda v: isinstance(v, dict), "an object"),
    "title": (_is_text, "text"),
    "type": (_is_text, "text"),
    "public": (_is_truth, "true or false"),
    "handler": (_is_optional_text, "text or null"),
    "other_fields": (lambda v: isinstance(v, dict), "an object"),
    "token": (_is_optional_line, f"a token of {_MOST_LINE} characters at most, or null"),
    # For code inside Girder: the token of the job is sent there.
    "api_url": (lambda v: v is None, "null: a request does not say where Girder is"),
    "retries": (_is_count, "a number of tries, 0 or more"),
    "timeout": (
        lambda v: v is None or (_is_number(v) and 0 < v < _COUNT),
        "a number of seconds above 0, or null",
    ),
    "resources": (
        _are_resources,
        "an object of numbers above 0 by the names of resources, or null",
    ),
    "priority": (
        lambda v: isinstance(v, int) and not isinstance(v, bool) and abs(v) < _COUNT,
        "a whole number",
    ),
    "isolation": (lambda v: v in (None, "thread", "process"), "'thread', 'process' or null"),
    "at_most_once": (_is_truth, "true or false"),
    "dependencies": (
        lambda v: isinstance(v, (list, tuple)) and all(to_object_id(job_id) for job_id in v),
        "a list of ids of jobs",
    ),
}
