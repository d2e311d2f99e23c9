"""The plugin's handlers of Girder's events about jobs, users and settings."""

from __future__ import annotations

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
from girder_dask.plugin.rest import error_responses
from girder_dask.plugin.rest.reserved_fields import (
    refuse_non_finite_numbers,
    refuse_reserved_fields,
)
from girder_dask.plugin.store import artifacts, cancellation, job_records
from girder_dask.plugin.store.logs import chunks
from girder_dask.plugin.store.maps import large_maps, parents
from girder_dask.plugin.store.validation import is_map_parent
from girder_dask.plugin.whole_saves import save_other_fields
from girder_dask.utils.text import MAX_LINE_CHARACTERS

__all__ = ["bind"]

_STATUSES = frozenset(int(status) for status in JobStatus)


def bind(backend: GirderBackend) -> None:
    """Bind the events. The handlers reach the scheduler through ``backend``."""
    handlers = _JobEventHandlers(backend)
    bound: dict[str, Callable[[Any], None]] = {
        "jobs.status.validate": _validate_status,
        "jobs.status.validTransitions": _allow_transitions,
        "jobs.schedule": handlers.on_schedule,
        "jobs.cancel": handlers.on_cancel,
        "jobs.job.update": _before_update,
        "jobs.job.update.after": handlers.on_updated,
        "model.job.remove": handlers.on_removed,
        "model.job.save": save_other_fields,
        "model.user.remove": handlers.on_user_removed,
        "rest.post.job.before": refuse_reserved_fields,
        "rest.put.job/:id.before": _refuse_long_messages,
        "model.setting.save.after": settings.clear_cache,
        "model.setting.remove": settings.clear_cache,
    }
    for name, handler in bound.items():
        events.bind(name, EVENT_HANDLER, handler)


class _JobEventHandlers:
    """Handlers of the events that can require an action of the scheduler."""

    def __init__(self, backend: GirderBackend) -> None:
        self._backend = backend

    def on_schedule(self, event: Any) -> None:
        """Queue a job that ``Job().createJob`` made when ``Job().scheduleJob`` is called."""
        if event.info.get("handler") != HANDLER:
            return
        event.stopPropagation()
        try:
            self._backend.schedule(event.info)
        except GirderDaskError as e:
            raise ValidationException(str(e), "dask") from e

    def on_cancel(self, event: Any) -> None:
        """Cancel a job of this plugin when ``Job().cancelJob`` is called."""
        job = event.info
        if _is_ours(job):
            event.stopPropagation().preventDefault()
            with error_responses.http_errors():
                status = self._backend.stop(job["_id"])
            if status is not None:
                # Girder answers the request with this document.
                job["status"] = int(status)

    def on_removed(self, event: Any) -> None:
        """Delete what belongs to a deleted job, and end its run."""
        job = event.info
        if not isinstance(job["_id"], ObjectId):
            return  # this plugin cannot have run the job
        job_id = ObjectId(job["_id"])
        artifacts.remove_all(job_id)
        if not (_is_ours(job) or job.get("dask")):
            return
        if not is_map_parent(job):
            # Closed first, so that a token that is stored from now on is deleted.
            job_records.close_removed(job_id)
        job_records.delete([job_id])
        chunks.delete([job_id])
        if job.get("status") not in FINAL:
            cancellation.record_removal(job_id)
            if large_maps.is_large(job_id):
                large_maps.leave_behind(job_id)
                return
            children = cancellation.cancel_children(job_id, self._backend.ask_scheduler)
            self._backend.tell_canceled([str(job_id), *children])
        # The job no longer has its parent, which therefore waits for it no longer.
        parents.recount_parents_of([job])

    def on_user_removed(self, event: Any) -> None:
        """End the jobs of a deleted user."""
        canceled = cancellation.cancel_jobs_of_user(event.info, self._backend.ask_scheduler)
        self._backend.tell_canceled(canceled)

    def on_updated(self, event: Any) -> None:
        """Clean up after a job that other code has ended through ``Job().updateJob``."""
        job = event.info["job"]
        if cancellation.clean_up_ended(job):
            self._backend.tell_canceled([str(job["_id"])])
        elif not job.get("dask"):
            # A job of another handler may belong to the parent of a map.
            parents.recount_parents_of([job])


def _is_ours(job: dict[str, Any]) -> bool:
    """Return True if this plugin runs a job, even if its call has set another handler."""
    is_open = isinstance(dask := job.get("dask"), dict) and "open" in dask
    return job.get("handler") == HANDLER or is_open or is_map_parent(job)


def _validate_status(event: Any) -> None:
    if isinstance(event.info, int) and event.info in _STATUSES:
        event.preventDefault().addResponse(True)


def _allow_transitions(event: Any) -> None:
    status = event.info["status"]
    if _is_ours(event.info["job"]) and isinstance(status, int) and status in _STATUSES:
        before = PREDECESSORS[JobStatus(event.info["status"])]
        event.preventDefault().addResponse([int(status) for status in before])


def _before_update(event: Any) -> None:
    refuse_non_finite_numbers(event)
    _remove_tokens(event)


@access.public  # Girder requires a rule of handlers too; the route has its own
def _refuse_long_messages(event: Any) -> None:
    """Refuse a ``progressMessage`` of ``PUT job/:id`` that is too long for lists of jobs."""
    length = len(str(event.info["params"].get("progressMessage") or ""))
    if length > MAX_LINE_CHARACTERS:
        raise RestException(
            f"The progressMessage has {length:,} characters, more than the "
            f"{MAX_LINE_CHARACTERS:,} that are shown of a job. Use log for long text."
        )


def _remove_tokens(event: Any) -> None:
    """Remove the token that ``girder_plugin_worker`` puts into each job that is saved."""
    fields = event.info["params"].get("otherFields")
    if not fields or "jobInfoSpec" not in fields or not _is_ours(event.info["job"]):
        return
    spec = fields.pop("jobInfoSpec")
    headers = spec.get("headers") if isinstance(spec, dict) else None
    token = headers.get("Girder-Token") if isinstance(headers, dict) else None
    if isinstance(token, str) and token:
        Token().removeWithQuery({"_id": token})
