"""Messages of Celery in Girder: each becomes a job, or starts the job that was made for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bson import ObjectId
from girder.models.token import Token
from girder.models.user import User
from girder_jobs.models.job import Job
from girder_worker.app import app
from msgspec.structs import replace

from girder_dask import config
from girder_dask.celery import publishing
from girder_dask.celery.moments import timestamp_of
from girder_dask.errors import SubmissionError
from girder_dask.jobs import FINAL
from girder_dask.plugin.backend import GirderBackend
from girder_dask.plugin.celery import transform_tokens
from girder_dask.plugin.celery.control import WorkerAnswers
from girder_dask.plugin.store import existing_jobs, models, results
from girder_dask.plugin.store.database import database_errors, to_object_id
from girder_dask.plugin.store.idempotency import REQUEST_FIELD
from girder_dask.protocol.celery_message import (
    MAX_PRIORITY,
    CeleryJob,
    CeleryMessage,
    queue_resources,
)
from girder_dask.protocol.messages import StoredResult, Submission
from girder_dask.protocol.payload import pack_message
from girder_dask.tasks.discovery import package_of

__all__ = ["PARENT_ID_FIELD", "TASK_ID_FIELD", "GirderCeleryMessages", "find_jobs", "submission_of"]

#: The field of a job with Celery's id of the call, as girder_worker names it.
TASK_ID_FIELD = "celeryTaskId"
#: The field of a job with Celery's id of the call whose task has started it.
PARENT_ID_FIELD = "celeryParentTaskId"
# The header with the job that was made for a message, and its field with a token for that job.
_JOB_INFO = "jobInfoSpec"

# The most jobs that a request looks at.
_MAX_FOUND_JOBS = 10_000


class GirderCeleryMessages:
    """A :class:`girder_dask.client.backend.CeleryMessages` inside Girder.

    Parameters
    ----------
    backend
        Records and sends the jobs.
    """

    def __init__(self, backend: GirderBackend) -> None:
        self._backend = backend
        self._answers = WorkerAnswers(backend.scheduler_workers)

    def ensure_index(self) -> None:
        """Create the index over Celery's ids."""
        Job().ensureIndex(([(TASK_ID_FIELD, 1)], {"name": TASK_ID_FIELD, "sparse": True}))

    def send(self, message: CeleryMessage, job: CeleryJob | None, call: str) -> None:  # noqa: ARG002
        """Record a message that code inside Girder sends, and send its job.

        Raises
        ------
        SubmissionError
            If it cannot become a job.
        GirderError
            If the database does not store it.
        """
        info = message.headers.get(_JOB_INFO)
        rest = {name: value for name, value in message.headers.items() if name != _JOB_INFO}
        submission = submission_of(replace(message, headers=rest), job)
        with database_errors(f"The message for {message.task} was not sent"):
            if info is None:
                ids = {TASK_ID_FIELD: message.id}
                fields = {**submission.other_fields, **ids}
                self._backend.submit([replace(submission, other_fields=fields)])
            else:
                self._adopt(info, message, submission)
            transform_tokens.delete_spent(publishing.take_spent_tokens())

    def _adopt(self, info: Any, message: CeleryMessage, submission: Submission) -> None:
        """Start the job that code inside Girder has made for a message."""
        reference = to_object_id(info.get("reference")) if isinstance(info, Mapping) else None
        job = None if reference is None else Job().load(reference, force=True)
        if job is None:
            raise SubmissionError(
                f"The message for {message.task} names a job that does not exist.",
                task=submission.task,
            )
        owner = User().load(job["userId"], force=True) if job.get("userId") else None
        stored = job.get(_JOB_INFO)
        recorded = existing_jobs.adopt(
            job, submission, owner, {TASK_ID_FIELD: message.id}, (_JOB_INFO,)
        )
        _delete_job_tokens(job["_id"], info, stored)
        self._backend.send([recorded.spec])

    def control(self, method: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the answers of workers to a command of Celery, by the names of the workers."""
        if method == "revoke":
            given = arguments.get("task_id")
            self.revoke(given if isinstance(given, list) else [given])
            return {}
        return self._answers.to(method)

    def revoke(self, task_ids: list[Any]) -> None:
        """Cancel the unfinished jobs on Dask with these ids of Celery."""
        for job in find_jobs([str(each) for each in task_ids]):
            if job["status"] not in FINAL and "dask" in job:
                self._backend.stop(job["_id"])

    def result(self, task_id: str) -> StoredResult | None:
        """Return the result of the newest job with an id of Celery, None if there is none."""
        with database_errors(f"The result of the task {task_id} cannot be read"):
            jobs = find_jobs([task_id], limit=1)
            if not jobs:
                return None
            return replace(results.load(jobs[0]["_id"]), status=int(jobs[0]["status"]))


def find_jobs(
    task_ids: list[str], query: Mapping[str, Any] | None = None, *, limit: int = _MAX_FOUND_JOBS
) -> list[dict[str, Any]]:
    """Return the jobs with these ids of Celery, the newest first, with the fields for access."""
    fields = ("status", "dask.open", "parentId", "userId", "access", "public", "publicFlags")
    found = models.collection(Job()).find(
        {TASK_ID_FIELD: {"$in": task_ids}, **(query or {})},
        dict.fromkeys((*fields, TASK_ID_FIELD, REQUEST_FIELD), True),
        sort=[("created", -1)],
        limit=limit,
    )
    return list(found)


def submission_of(message: CeleryMessage, job: CeleryJob | None) -> Submission:
    """Return a message as the call of a job.

    Parameters
    ----------
    job
        The fields of the job. None for the jobs of messages that make none with girder_worker.
    """
    job = job or CeleryJob(title=message.task)
    known = app.tasks.get(message.task)
    limits = message.headers.get("timelimit") or (None,)
    timeout = limits[0] or getattr(known, "time_limit", None)
    return Submission(
        task=message.task_name,
        payload=pack_message(message, limit=config.nbytes("max-payload")),
        package=package_of(message.task.partition(".")[0]),
        args=job.args,
        kwargs=job.kwargs,
        title=job.title,
        type=job.type,
        public=job.public,
        other_fields=dict(job.other_fields),
        user=job.user,
        token=job.token,
        timeout=float(timeout) if timeout else None,
        resources=queue_resources(message.queue) or None,
        priority=_priority(message.properties.get("priority")),
        # Without acks_late, Celery takes a message from the queue before its task begins.
        at_most_once=not getattr(known, "acks_late", app.conf.task_acks_late),
        not_before=timestamp_of(message.headers.get("eta")),
    )


def _priority(given: Any) -> int:
    return max(-MAX_PRIORITY, min(int(given or 0), MAX_PRIORITY))


def _delete_job_tokens(job_id: ObjectId, *infos: Any) -> None:
    """Delete the tokens for one job that girder_worker's plugin has made."""
    for info in infos:
        headers = info.get("headers") if isinstance(info, Mapping) else None
        token = headers.get("Girder-Token") if isinstance(headers, Mapping) else None
        if isinstance(token, str):
            Token().removeWithQuery({"_id": token, "scope": f"jobs.job_{job_id}"})
