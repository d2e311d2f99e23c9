"""Authority of running jobs that send messages of Celery."""

from __future__ import annotations

from dataclasses import replace

from girder.exceptions import AccessException

from girder_dask.celery import message_body
from girder_dask.errors import ArgumentError
from girder_dask.plugin.celery import stored_calls
from girder_dask.plugin.celery.stored_calls import StoredCalls
from girder_dask.plugin.rest import authorization, option_limits
from girder_dask.plugin.store import job_records
from girder_dask.plugin.store.access.authority import Authority, of_job
from girder_dask.plugin.store.access.requester import Requester
from girder_dask.protocol.celery_message import FOLLOWING_CALLS, CeleryMessage
from girder_dask.protocol.messages import Submission

__all__ = ["authorize"]

# The tasks of these packages do what their arguments say: start any container, or any task.
_INTERPRETERS = frozenset({"celery", "girder_worker", "slicer_cli_web"})
# Tasks of Celery itself that only collect results.
_COLLECTING = frozenset({"celery.accumulate", "celery.chord_unlock"})


def authorize(requester: Requester, message: CeleryMessage, submission: Submission) -> Authority:
    """Return the authority under which the message of a running job becomes a job.

    Owners who may run code may send anything. The jobs of others send data, and the calls that
    their own message holds.

    Raises
    ------
    AccessException
        If the job may not send the message. The error names the task or the place.
    """
    authorization.authorize(requester, ())
    job = requester.job or {}
    authority = _of_job(job)
    if authority.runs_code:
        return authority
    stored = stored_calls.load(job["_id"])
    is_trusted = stored.trusted and stored.continues(message)
    try:
        message_body.check(message, stored.objects if is_trusted else ())
    except ArgumentError as e:
        raise AccessException(str(e)) from e
    reason = _refusal(message, submission, authority, stored)
    if reason is not None:
        raise AccessException(f"Job {job['_id']} may not start {reason}")
    # A call that Girder has stored is opened as Girder's own. Nothing else gains by it.
    return replace(authority, runs_code=is_trusted)


def _of_job(job: dict[str, object]) -> Authority:
    """Return the authority of a job, which may start the tasks of its own package."""
    authority = of_job(job)
    origin = job_records.load_origin(job["_id"])  # type: ignore[arg-type]
    package = origin.task.partition(":")[0].partition(".")[0]
    if not origin.from_girder or package in _INTERPRETERS:
        return authority
    return replace(authority, modules=authority.modules | {package})


def _refusal(
    message: CeleryMessage, submission: Submission, authority: Authority, stored: StoredCalls
) -> str | None:
    """Return which call of a message the job may not start, and why; None if it may start all."""
    excess = option_limits.find_excess(submission, any_field=True)
    if excess is not None:
        return f"{submission.task} on Dask: {excess}."
    if misplaced := FOLLOWING_CALLS & message.headers.keys():
        return f"calls that are in the headers of its message: {', '.join(sorted(misplaced))}"
    calls = []
    if message.task not in _COLLECTING and not stored.continues(message):
        calls.append(submission)
    for following in message_body.signatures(message_body.load(message)):
        name = str(following["task"])
        if name not in _COLLECTING and not stored.has(following):
            named = CeleryMessage(id=message.id, task=name[:500] or "?", queue="", body="")
            calls.append(Submission(task=named.task_name, payload=submission.payload))
    for call in calls:
        reason = authorization.refusal(call, authority)
        if reason is not None:
            return f"{call.task} on Dask: {reason}"
    return None
