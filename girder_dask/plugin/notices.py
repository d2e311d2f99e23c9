"""What users' browsers are told of their jobs, exactly as ``girder_jobs`` tells it.

Each notice of ``girder_jobs`` is a request to Redis, which its sender waits for. Here those of
a batch go in one, and nobody waits (:mod:`girder_dask.plugin.courier`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from girder import events
from girder.models.user import User
from girder.notification import ProgressState
from girder_jobs.constants import JobStatus as GirderJobStatus
from girder_jobs.models.job import Job

from girder_dask.jobs import FINAL, JobStatus
from girder_dask.plugin.courier import Courier
from girder_dask.plugin.documents import is_bound

__all__ = ["EVENT_HANDLER", "Change", "Notices", "owners", "publish"]

logger = logging.getLogger(__name__)

#: The name under which this plugin binds events.
EVENT_HANDLER = "dask"

_courier = Courier()


class Change(Protocol):
    """What was written to a job: a :class:`~girder_dask.plugin.history.History`, for example.

    ``steps`` are the states that it went through, each with how many timestamps the job had
    then. ``restated`` says that there is other news of the state that it is in.
    """

    job: dict[str, Any]
    steps: list[tuple[int, int]]
    progressed: bool
    restated: bool

    @property
    def text(self) -> Sequence[str]:
        """What was added to the log."""

    @property
    def log_sizes(self) -> tuple[int, int] | None:
        """From which size of the log to which it goes; None if the sizes do not tell."""

    @property
    def changed(self) -> bool:
        """Whether anything was written at all."""


def publish(changes: Iterable[Change]) -> None:
    """Tell users' browsers and handlers of events of what was written to jobs."""
    changes = [change for change in changes if change.changed]
    users = owners(change.job for change in changes)
    notices = Notices()
    for change in changes:
        user = users.get(change.job.get("userId"))
        if change.text:
            notices.log(change.job, user, "".join(change.text), change.log_sizes)
        if change.progressed:
            notices.progress(change.job, user)
        steps = change.steps
        if change.restated and not steps:
            steps = [(change.job["status"], len(change.job["timestamps"]))]
        notices.status(change.job, user, steps)
    notices.send()
    _tell_handlers(changes)


def _tell_handlers(changes: Sequence[Change]) -> None:
    if not is_bound("jobs.job.update.after", besides=EVENT_HANDLER):
        return
    for change in changes:
        try:
            events.trigger("jobs.job.update.after", {"job": change.job})
        except Exception:
            # The job is updated; a handler of somebody else cannot undo that.
            logger.exception("A handler of jobs.job.update.after failed: %s", change.job["_id"])


def owners(jobs: Iterable[Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Return the owners of jobs by their ids, all found at once."""
    ids = {job["userId"] for job in jobs if job.get("userId")}
    if not ids:
        return {}
    return {user["_id"]: user for user in User().collection.find({"_id": {"$in": list(ids)}})}


class Notices:
    """Notices that are collected and then sent together."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, str]] = []

    def created(self, job: Mapping[str, Any], user: Mapping[str, Any] | None) -> None:
        """Tell of a new job. ``kwargs`` of the document are serialised."""
        self._add("job_created", job, user)

    def status(
        self,
        job: dict[str, Any],
        user: dict[str, Any] | None,
        steps: Iterable[tuple[int, int]],
    ) -> None:
        """Tell of the states that a job has gone through.

        ``steps`` are pairs of a state and how many timestamps the job had in it.
        """
        if user is None:
            return
        filtered = Job().filter({k: v for k, v in job.items() if k not in ("kwargs", "log")}, user)
        for status, length in steps:
            data = {**filtered, "status": status, "timestamps": job["timestamps"][:length]}
            self._add("job_status", data, user)

    def log(
        self,
        job: Mapping[str, Any],
        user: Mapping[str, Any] | None,
        text: str,
        sizes: tuple[int, int] | None = None,
    ) -> None:
        """Tell of text that was added to a log, and from which size of it to which it goes.

        So a page knows whether what it has fetched holds the text.
        """
        data: dict[str, Any] = {"_id": job["_id"], "overwrite": False, "text": text}
        self._add("job_log", data if sizes is None else {**data, "sizes": sizes}, user)

    def progress(self, job: Mapping[str, Any], user: Mapping[str, Any] | None) -> None:
        """Tell how far a job is."""
        progress = job["progress"]
        data = {
            "title": job["title"],
            "total": progress["total"],
            "current": progress["current"],
            "state": _progress_state(job["status"]),
            "message": progress["message"],
            "resource": job,
            "resourceName": "job",
        }
        self._add(
            "progress",
            data,
            user,
            estimateTime=False,
            startTime=time.time(),
            _id=str(job["_id"]),
        )

    def _add(
        self,
        kind: str,
        data: Mapping[str, Any],
        user: Mapping[str, Any] | None,
        **more: Any,
    ) -> None:
        if user is not None:
            message = json.dumps({"type": kind, "data": data, **more}, default=str)
            self._waiting.append((f"user_{user['_id']}", message))

    def send(self) -> None:
        """Send what was collected. Returns at once, and never raises."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            _courier.post(waiting)


def _progress_state(status: int) -> str:
    """Return the state that a browser shows a progress bar in.

    Girder's own jobs know no states besides theirs, and show the others as errors.
    """
    if status not in FINAL and status >= JobStatus.FETCHING_INPUT:
        return str(ProgressState.ACTIVE)
    return str(GirderJobStatus.toNotificationStatus(status))
