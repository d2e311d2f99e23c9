"""Authority of running jobs that send messages of Celery."""

from __future__ import annotations

from dataclasses import replace

from girder.exceptions import AccessException

from girder_dask.celery import message_body
from girder_dask.plugin.rest import authorization, option_limits
from girder_dask.plugin.store import job_records
from girder_dask.plugin.store.access.authority import Authority, of_job
from girder_dask.plugin.store.access.requester import Requester
from girder_dask.protocol.celery_message import CeleryMessage
from girder_dask.protocol.messages import Submission

__all__ = ["of", "require"]

# The tasks of these packages do what their arguments say: start any container, or any task.
_INTERPRETERS = frozenset({"celery", "girder_worker"})
# Tasks of Celery itself that only collect results.
_COLLECTING = frozenset({"celery.accumulate", "celery.chord_unlock"})


def of(requester: Requester) -> Authority:
    """Return the authority of the running job that sends a request."""
    authorization.authorize(requester, ())
    job = requester.job or {}
    authority = of_job(job)
    origin = job_records.load_origin(job["_id"])
    package = origin.task.partition(":")[0].partition(".")[0]
    if not origin.from_girder or package in _INTERPRETERS:
        return authority
    return replace(authority, modules=authority.modules | {package})


def require(
    requester: Requester, authority: Authority, message: CeleryMessage, submission: Submission
) -> None:
    """Check that a job may start the task of a message, and those that follow it.

    Raises
    ------
    AccessException
        If it may not. The message names the task and what to do.
    """
    if authority.runs_code:
        return
    job_id = (requester.job or {})["_id"]
    excess = option_limits.find_excess(submission, any_field=True)
    if excess is not None:
        raise AccessException(f"Job {job_id} may not start {message.task} on Dask: {excess}.")
    calls = [submission] if message.task not in _COLLECTING else []
    body = message_body.load(message)
    for following in message_body.signatures(body):
        name = str(following["task"])
        if name not in _COLLECTING:
            named = CeleryMessage(id=message.id, task=name[:500] or "?", queue="", body="")
            calls.append(Submission(task=named.task_name, payload=submission.payload))
    for call in calls:
        reason = authorization.refusal(call, authority)
        if reason is not None:
            raise AccessException(f"Job {job_id} may not start {call.task} on Dask: {reason}")
