"""Submissions in the bodies of requests: reading, checking and recording them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from bson import ObjectId
from girder.constants import AccessType
from girder.exceptions import AccessException, RestException
from girder.models.user import User
from girder_jobs.models.job import Job
from msgspec.structs import replace

import girder_dask
from girder_dask import config
from girder_dask.errors import GirderError
from girder_dask.plugin.backend import GirderBackend
from girder_dask.plugin.rest.body_types import SubmissionsBody
from girder_dask.plugin.rest.reserved_fields import RESERVED_FIELDS, find_reserved
from girder_dask.plugin.store.access.authority import Authority
from girder_dask.plugin.store.access.requester import Requester
from girder_dask.plugin.store.database import to_object_id
from girder_dask.plugin.store.idempotency import IdempotencyKey
from girder_dask.plugin.store.maps import parents
from girder_dask.plugin.store.maps.recording import MapPiece
from girder_dask.protocol.messages import MAX_DELAY_S, MapParent, Submission
from girder_dask.protocol.request_limits import MAX_JOBS_PER_REQUEST
from girder_dask.protocol.wire_json import from_json

__all__ = [
    "check_size",
    "extend",
    "idempotency_key",
    "read_group",
    "read_parent",
    "read_submissions",
    "record",
]

# The most characters of a token or a name.
_MAX_LINE_CHARS = 500

# The fields of messages on the wire.
_KNOWN_FIELDS: dict[type[Any], frozenset[str]] = {
    kind: frozenset([*kind.__struct_encode_fields__, "version"]) for kind in (Submission, MapParent)
}

# By how much the clock of a client may differ.
_CLOCK_SKEW_S = 86_400.0


def check_size(body: SubmissionsBody) -> None:
    """Raise RestException if a request has too many jobs, or is of two kinds."""
    count = len(body.submissions)
    if count > MAX_JOBS_PER_REQUEST:
        raise RestException(
            f"The request has {count:,} jobs, more than the {MAX_JOBS_PER_REQUEST:,} that one "
            "request may start. No job was created. Send them in several requests; a map of this "
            "version of girder_dask does so by itself.",
            code=413,
        )
    if body.parent is not None and body.group is not None:
        raise RestException("A request has a group or a parent, not both.")


def read_parent(given: str, requester: Requester) -> ObjectId:
    """Return the id of the map of which a request sends more jobs.

    Raises
    ------
    RestException
        If there is none.
    AccessException
        If the map is another user's: its jobs have the rights of its owner.
    """
    parent = Job().load(given, force=True, fields=["userId", "parentId"])
    if parent is None:
        raise RestException(f"There is no map {given}. No job was created.", code=404)
    owner = requester.user["_id"] if requester.user is not None else None
    is_own = parent.get("userId") == owner
    if requester.job is not None:
        is_own = parent.get("parentId") == requester.job["_id"]
    if not is_own:
        raise AccessException(
            f"Map {given} is not yours, so you may not add jobs to it. {requester.name} may start "
            "a map of their own."
        )
    return ObjectId(parent["_id"])


def read_submissions(wires: Sequence[Any], requester: Requester) -> list[Submission]:
    """Read the calls in the body of a request.

    Raises
    ------
    RestException
        If a call is malformed. The message names the call and the reason.
    AccessException
        If a call names a parent that the user may not change.
    """
    return [_read(Submission, wire, n, requester) for n, wire in enumerate(wires, 1)]


def read_group(wire: Any, requester: Requester) -> MapParent | None:
    """Read the parent job in the body of a request, or None. Raises as :func:`read_submissions`."""
    return None if wire is None else _read(MapParent, wire, None, requester)


def _read(kind: type[Any], wire: Any, number: int | None, requester: Requester) -> Any:
    what = "The group" if number is None else f"Submission {number}"
    if not isinstance(wire, dict):
        raise RestException(f"{what} is not a JSON object.")
    wire = dict(wire)
    wire.pop("user", None)  # the user is always the requester
    _refuse_unknown(wire, kind, what)
    try:
        value = kind.from_wire(from_json(wire))
        _check(value)
        return _with_parent(value, requester)
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise RestException(f"{what} cannot be read: {e}") from e


def _refuse_unknown(wire: dict[str, Any], kind: type[Any], what: str) -> None:
    """Raise RestException for fields that this release does not have.

    A newer client sends an option only if the caller gives it. A job without it would not do what
    was asked.
    """
    unknown = sorted(str(name)[:100] for name in wire.keys() - _KNOWN_FIELDS[kind])
    if unknown:
        raise RestException(
            f"{what} has fields that this Girder does not know: {', '.join(unknown[:10])}. If a "
            f"newer girder_dask has sent them, upgrade girder_dask in Girder, which has "
            f"{girder_dask.__version__}."
        )


def _check(value: Submission | MapParent) -> None:
    if isinstance(value, Submission):
        _check_call(value)
    wrong = find_reserved(value.other_fields, RESERVED_FIELDS - {"parentId"})
    if wrong:
        raise ValueError(f"its other_fields must not set {', '.join(wrong)[:200]}")


def _check_call(call: Submission) -> None:
    call.check()
    for name in ("package", "token"):
        line = getattr(call, name)
        if line is not None and not _is_line(line):
            raise ValueError(f"Expected a line of {_MAX_LINE_CHARS} characters - at `$.{name}`")
    if call.api_url is not None:
        # Only code inside Girder may set where the token of the job is sent.
        raise ValueError("Expected `null`: a request does not say where Girder is - at `$.api_url`")
    if call.not_before is not None and call.not_before > time.time() + MAX_DELAY_S + _CLOCK_SKEW_S:
        raise ValueError(
            f"Expected a time within {MAX_DELAY_S // 86_400:,} days from now - at `$.not_before`"
        )
    if call.payload[:1] not in (b"j", b"p"):
        raise ValueError("Expected a packed call - at `$.payload`")
    limit = config.nbytes("max-payload")
    if len(call.payload) > limit:
        raise ValueError(
            f"the packed call of {call.task} takes {len(call.payload):,} bytes, more than the "
            f"{limit:,} that are stored with a job (girder.max-payload in Girder's Dask "
            "configuration). Upload large data to Girder and pass its id"
        )


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_LINE_CHARS and value.isprintable()


def _with_parent(value: Any, requester: Requester) -> Any:
    """Check the parent that a call names: a job that the user may change."""
    given = value.other_fields.get("parentId")
    if given is None:
        return value
    parent_id = to_object_id(given)
    parent = None if parent_id is None else Job().load(parent_id, force=True)
    if parent is None:
        raise ValueError(f"there is no job {given!r}, which it names as its parent")
    requester.require(parent, AccessType.WRITE)
    return replace(value, other_fields={**value.other_fields, "parentId": parent["_id"]})


def idempotency_key(key: Any, requester: Requester) -> IdempotencyKey | None:
    """Return the idempotency key of a request, None if it has none."""
    sender = requester.job or requester.user
    return None if key is None or sender is None else IdempotencyKey(key, sender["_id"])


def record(
    backend: GirderBackend,
    requester: Requester,
    submissions: Sequence[Submission],
    group: MapParent | None,
    key: IdempotencyKey | None,
    authority: Authority,
    *,
    more: bool = False,
) -> list[dict[str, Any]]:
    """Record the calls of a request, and send them; return the job documents.

    If an earlier request with the same key has recorded them, the documents of those jobs are
    returned. With ``more``, other calls of the group follow.
    """
    parent = requester.job["_id"] if requester.job is not None else None
    if key is not None:
        submissions, group = key.mark(submissions, group)
    try:
        return backend.submit_for(
            _owner(requester), parent, submissions, group, more=more, authority=authority
        )
    except GirderError:
        # The error also means that an earlier request with this key has recorded the jobs.
        known = key.find_jobs(submissions, group) if key is not None else []
        if not known:
            raise
        return known


def extend(
    backend: GirderBackend, piece: MapPiece, key: IdempotencyKey | None, authority: Authority
) -> list[str]:
    """Record further calls of a map, and send them; return the ids of the jobs.

    A repeated request adds what an earlier one with its key has not recorded.
    """
    if key is not None:
        calls, _ = key.mark(piece.submissions, None)
        piece = dataclasses.replace(piece, submissions=calls)
    try:
        return [str(job["_id"]) for job in backend.extend(piece, authority=authority)]
    except GirderError:
        known = key.find_jobs(piece.submissions, None) if key is not None else []
        if not known:
            raise
    if piece.is_last:
        # The process that recorded the jobs may have died before it marked the map.
        parents.mark_complete(piece.parent, piece.sent)
    return [str(job["_id"]) for job in known]


def _owner(requester: Requester) -> dict[str, Any] | None:
    """Return the owner of new jobs: that of the job that starts them, or the user."""
    if requester.job is None:
        return requester.user
    owner_id = requester.job.get("userId")
    return User().load(owner_id, force=True) if owner_id else None
