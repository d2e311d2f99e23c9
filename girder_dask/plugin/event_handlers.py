"""What the plugin does when Girder says that something happens to a job."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from bson import ObjectId
from girder import events
from girder.api import access
from girder.exceptions import RestException, ValidationException
from girder.models.token import Token

from girder_dask.errors import GirderDaskError
from girder_dask.jobs import FINAL, HANDLER, PREDECESSORS, JobStatus
from girder_dask.plugin import settings
from girder_dask.plugin.backend import GirderBackend
from girder_dask.plugin.girder_events import EVENT_HANDLER
from girder_dask.plugin.rest import responses
from girder_dask.plugin.rest.reserved_fields import (
    refuse_non_finite_numbers,
    refuse_reserved_fields,
)
from girder_dask.plugin.store import artifacts, cancellation, job_records
from girder_dask.plugin.store.logs import chunks
from girder_dask.plugin.store.maps import parents
from girder_dask.plugin.store.validation import is_map_parent
from girder_dask.utils.text import MAX_LINE_CHARACTERS

__all__ = ["bind"]

logger = logging.getLogger(__name__)

_STATUSES = frozenset(int(status) for status in JobStatus)


def bind(backend: GirderBackend) -> None:
    """Bind the events. The handlers send what the scheduler must know through ``backend``."""
    handlers: dict[str, Callable[[Any], None]] = {
        "jobs.status.validate": _validate_status,
        "jobs.status.validTransitions": _valid_transitions,
        "jobs.schedule": _Schedule(backend),
        "jobs.cancel": _Cancel(backend),
        "jobs.job.update": _updating,
        "jobs.job.update.after": _Updated(backend),
        "model.job.remove": _Removed(backend),
        "model.user.remove": _UserRemoved(backend),
        "rest.post.job.before": refuse_reserved_fields,
        "rest.put.job/:id.before": _refuse_long_messages,
        "model.setting.save.after": settings.clear_cache,
        "model.setting.remove": settings.clear_cache,
    }
    for name, handler in handlers.items():
        events.bind(name, EVENT_HANDLER, handler)


def _is_ours(job: dict[str, Any]) -> bool:
    """Say whether we run a job: a call may have given it another handler."""
    is_open = isinstance(dask := job.get("dask"), dict) and "open" in dask
    return job.get("handler") == HANDLER or is_open or is_map_parent(job)


def _validate_status(event: Any) -> None:
    if isinstance(event.info, int) and event.info in _STATUSES:
        event.preventDefault().addResponse(True)


def _valid_transitions(event: Any) -> None:
    status = event.info["status"]
    if _is_ours(event.info["job"]) and isinstance(status, int) and status in _STATUSES:
        before = PREDECESSORS[JobStatus(event.info["status"])]
        event.preventDefault().addResponse([int(status) for status in before])


class _Schedule:
    """Queues a job that ``Job().createJob`` made, when ``Job().scheduleJob`` is called."""

    def __init__(self, backend: GirderBackend) -> None:
        self._backend = backend

    def __call__(self, event: Any) -> None:
        if event.info.get("handler") != HANDLER:
            return
        event.stopPropagation()
        try:
            self._backend.schedule(event.info)
        except GirderDaskError as e:
            raise ValidationException(str(e), "dask") from e


class _Cancel:
    """Cancels our jobs when ``Job().cancelJob`` is called."""

    def __init__(self, backend: GirderBackend) -> None:
        self._backend = backend

    def __call__(self, event: Any) -> None:
        job = event.info
        if _is_ours(job):
            event.stopPropagation().preventDefault()
            with responses.translated_errors():
                status = self._backend.stop(job["_id"])
            if status is not None:
                # Girder answers the request with this document.
                job["status"] = int(status)


class _Removed:
    """Forgets a job that is deleted with its artifacts, and ends what runs of it."""

    def __init__(self, backend: GirderBackend) -> None:
        self._backend = backend

    def __call__(self, event: Any) -> None:
        job = event.info
        if not isinstance(job["_id"], ObjectId):
            return  # no job that we could have run
        artifacts.remove_all(ObjectId(job["_id"]))
        if _is_ours(job) or job.get("dask"):
            if not is_map_parent(job):
                # First: a token that is stored from now on is not kept.
                job_records.close_removed(ObjectId(job["_id"]))
            job_records.delete([ObjectId(job["_id"])])
            chunks.delete([ObjectId(job["_id"])])
            if job.get("status") not in FINAL:
                cancellation.record_removal(ObjectId(job["_id"]))
                children = cancellation.cancel_children(
                    ObjectId(job["_id"]), self._backend.ask_scheduler
                )
                self._backend.tell_canceled([str(job["_id"]), *children])


class _UserRemoved:
    """Ends the jobs of a user who is deleted."""

    def __init__(self, backend: GirderBackend) -> None:
        self._backend = backend

    def __call__(self, event: Any) -> None:
        self._backend.tell_canceled(
            cancellation.cancel_jobs_of_user(event.info, self._backend.ask_scheduler)
        )


class _Updated:
    """Cleans up after a job that somebody ended through ``Job().updateJob``."""

    def __init__(self, backend: GirderBackend) -> None:
        self._backend = backend

    def __call__(self, event: Any) -> None:
        job = event.info["job"]
        if cancellation.clean_up_ended(job):
            self._backend.tell_canceled([str(job["_id"])])
        elif not job.get("dask"):
            # A job that others run may belong to the parent of a map.
            parents.recount_parents_of([job])


def _updating(event: Any) -> None:
    refuse_non_finite_numbers(event)
    _keep_tokens_out(event)


@access.public  # Girder asks of handlers what it asks of routes; the route has its own rules
def _refuse_long_messages(event: Any) -> None:
    """Refuse ``PUT job/:id`` with a message that no page can show, since lists of jobs have it."""
    length = len(str(event.info["params"].get("progressMessage") or ""))
    if length > MAX_LINE_CHARACTERS:
        raise RestException(
            f"The progressMessage has {length:,} characters, more than the "
            f"{MAX_LINE_CHARACTERS:,} that are shown of a job. Use log for long text."
        )


def _keep_tokens_out(event: Any) -> None:
    """Take out the token that ``girder_plugin_worker`` puts into every job that is saved."""
    fields = event.info["params"].get("otherFields")
    if not fields or "jobInfoSpec" not in fields or not _is_ours(event.info["job"]):
        return
    spec = fields.pop("jobInfoSpec")
    headers = spec.get("headers") if isinstance(spec, dict) else None
    token = headers.get("Girder-Token") if isinstance(headers, dict) else None
    if isinstance(token, str) and token:
        Token().removeWithQuery({"_id": token})
