"""The routes on which a running task of girder_worker starts others, and asks about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from bson import ObjectId
from girder.api import access
from girder.api.describe import Description, autoDescribeRoute
from girder.api.rest import Resource
from girder.constants import AccessType
from girder.exceptions import AccessException, RestException
from msgspec import Meta, Struct
from msgspec.structs import replace

from girder_dask.plugin.backend import GirderBackend
from girder_dask.plugin.celery import message_authority
from girder_dask.plugin.celery.messages import (
    PARENT_ID_FIELD,
    TASK_ID_FIELD,
    GirderCeleryMessages,
    find_jobs,
    submission_of,
)
from girder_dask.plugin.rest import routes, submissions
from girder_dask.plugin.rest.body_parser import read_body_as
from girder_dask.plugin.rest.reserved_fields import find_reserved
from girder_dask.plugin.store import job_records
from girder_dask.plugin.store.access.requester import Requester, identify
from girder_dask.plugin.store.idempotency import IdempotencyKey
from girder_dask.protocol.celery_message import CeleryJob, CeleryMessage
from girder_dask.protocol.messages import Submission
from girder_dask.protocol.names import SUBMIT_SCOPE
from girder_dask.protocol.wire_json import from_json, to_json

__all__ = ["mount"]

# The most calls with one id that a job may send. Others of a user are not counted.
_MAX_CALLS_OF_ID = 1_000

# The most lists and objects of a request. What a message has is text within it.
_MAX_CONTAINERS = 500_000

_Line = Annotated[str, Meta(min_length=1, max_length=500)]


class MessageBody(Struct):
    """The body of ``POST dask/celery/message``. Its parts are checked one by one."""

    message: dict[str, Any]
    key: str
    job: dict[str, Any] | None = None
    sent: Annotated[list[_Line], Meta(max_length=_MAX_CALLS_OF_ID)] = []


class TaskIdBody(Struct):
    """The body of ``POST dask/celery/result``."""

    id: _Line


class TaskIdsBody(Struct):
    """The body of ``POST dask/celery/revoke``."""

    ids: Annotated[list[_Line], Meta(max_length=1000)]


def mount(resource: Resource, backend: GirderBackend, messages: GirderCeleryMessages) -> None:
    """Add the routes to the resource ``dask``."""
    handlers = CeleryRoutes(backend, messages)
    for name in ("message", "result", "revoke"):
        routes.add(resource, "POST", ("celery", name), getattr(handlers, name), documented=False)


class CeleryRoutes:
    """The handlers of the routes."""

    def __init__(self, backend: GirderBackend, messages: GirderCeleryMessages) -> None:
        self._backend = backend
        self._messages = messages

    @access.public(scope=SUBMIT_SCOPE)
    @autoDescribeRoute(Description("Record a message of Celery that a running job sends."))
    def message(self) -> dict[str, Any]:
        """Record a message as a job under the running one, once for each key.

        If the job has sent another call with the same id, and its present run has not (``sent``
        are the keys of those that it has), nothing is recorded, and the answer has the ``earlier``
        job.
        """
        requester = _running_job()
        body = read_body_as(MessageBody, max_containers=_MAX_CONTAINERS)
        message, submission = _read(body)
        parent = requester.job or {}
        _require_id(message.id, parent)
        authority = message_authority.authorize(requester, message, submission)
        ids = {
            TASK_ID_FIELD: message.id,
            PARENT_ID_FIELD: str(parent.get(TASK_ID_FIELD) or ""),
        }
        submission = replace(submission, other_fields={**submission.other_fields, **ids})
        key = IdempotencyKey(body.key, parent["_id"])
        earlier = _find_earlier(message.id, parent["_id"], key, body.sent)
        if earlier is not None:
            return {"jobs": [], "earlier": str(earlier)}
        jobs = submissions.record(self._backend, requester, [submission], None, key, authority)
        return {"jobs": [str(each["_id"]) for each in jobs]}

    @access.public(scope=SUBMIT_SCOPE)
    @autoDescribeRoute(Description("Return the result of a task of Celery to a running job."))
    def result(self) -> dict[str, Any]:
        """Return the stored result of the newest job with an id of Celery."""
        requester = _running_job()
        task_id = read_body_as(TaskIdBody).id
        for job in find_jobs([task_id], limit=1):
            if not job_records.is_descendant(job, (requester.job or {})["_id"]):
                requester.require(job, AccessType.READ)
        stored = self._messages.result(task_id)
        if stored is None:
            return {"result": None}
        shown = {
            "status": stored.status,
            "value": to_json(stored.value),
            "error": stored.error,
        }
        return {"result": shown}

    @access.public(scope=SUBMIT_SCOPE)
    @autoDescribeRoute(Description("Cancel the tasks that a running job has started."))
    def revoke(self) -> dict[str, Any]:
        """Cancel jobs under the running one, by their ids of Celery."""
        requester = _running_job()
        for job in find_jobs(read_body_as(TaskIdsBody).ids):
            if not job_records.is_descendant(job, (requester.job or {})["_id"]):
                raise AccessException(
                    f"Job {(requester.job or {})['_id']} has not started job {job['_id']}, so it "
                    "may not revoke it."
                )
            self._backend.stop(job["_id"])
        return {}


def _running_job() -> Requester:
    requester = identify()
    if requester.job is None:
        raise AccessException(
            "Only a running job may send messages of Celery. Elsewhere, start tasks through a "
            "route of Girder, or with girder_dask.connect()."
        )
    return requester


def _require_id(task_id: str, parent: Mapping[str, Any]) -> None:
    """Refuse the id of a task of another user: whoever asks for it would get this job instead."""
    others = {"userId": {"$ne": parent.get("userId")}}
    if find_jobs([task_id], others, limit=1):
        raise AccessException(
            f"Job {parent['_id']} may not start a task with the id {task_id!r:.100}: another user "
            "has a task with this id."
        )


def _find_earlier(
    task_id: str, parent: ObjectId, key: IdempotencyKey, sent: Sequence[str]
) -> ObjectId | None:
    """Return the job of another call with the same id that an earlier run of a job has sent.

    None if there is none, or if the present call has been sent before.

    Raises
    ------
    RestException
        If the job has sent as many calls with this id as are compared.
    """
    own = find_jobs([task_id], {"parentId": parent}, limit=_MAX_CALLS_OF_ID)
    if any(key.has_marked(job) for job in own):
        return None
    if len(own) == _MAX_CALLS_OF_ID:
        raise RestException(
            f"Job {parent} has started {len(own):,} tasks with the id {task_id!r:.100}, and more "
            "are not possible. Let Celery choose an id for each."
        )
    marked = key.marked_among(sent, own)
    return next((ObjectId(job["_id"]) for job in own if job["_id"] not in marked), None)


def _read(body: MessageBody) -> tuple[CeleryMessage, Submission]:
    """Read the message, and return it with the call of its job.

    Raises
    ------
    RestException
        If they are malformed.
    """
    try:
        message = CeleryMessage.from_wire(from_json(body.message))
        for name in ("id", "task", "queue"):
            if not getattr(message, name).isprintable():
                raise ValueError(f"Expected a printable line - at `$.{name}`")
        job = None if body.job is None else CeleryJob.from_wire(from_json(body.job))
        call = submission_of(message, None if job is None else replace(job, user=None, token=None))
        call = Submission.from_wire(call.to_wire())  # which checks the types of all fields
        call.check()
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as e:
        raise RestException(f"The message cannot be read: {e}") from e
    wrong = [] if job is None else find_reserved(job.other_fields)
    if wrong:
        raise RestException(f"The other fields of the job must not set {', '.join(wrong)[:200]}.")
    return message, call
