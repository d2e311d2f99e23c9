"""Authority of running jobs that send messages of Celery."""

from __future__ import annotations

import itertools
from dataclasses import replace

import msgspec
from girder.exceptions import AccessException

from girder_dask.celery import message_body
from girder_dask.celery.following_calls import FollowingCall, following_calls
from girder_dask.celery.shared_values import as_text, size_of
from girder_dask.errors import ArgumentError
from girder_dask.plugin.celery import stored_calls
from girder_dask.plugin.celery.stored_calls import (
    MAX_BODY_CHARS,
    MAX_CALLS,
    MAX_CONTAINERS,
    StoredCalls,
    names_local_queue,
)
from girder_dask.plugin.rest import authorization, option_limits
from girder_dask.plugin.store import job_records
from girder_dask.plugin.store.access.authority import Authority, of_job
from girder_dask.plugin.store.access.requester import Requester
from girder_dask.protocol.celery_message import (
    CHORD_POLL,
    FOLLOWING_CALLS,
    LOCAL_QUEUE,
    CeleryMessage,
)
from girder_dask.protocol.messages import Submission

__all__ = ["authorize"]

# The tasks of these packages do what their arguments say: start any container, or any task.
_INTERPRETERS = frozenset({"celery", "girder_worker", "slicer_cli_web"})
# Tasks of Celery itself that only collect results.
_COLLECTING = frozenset({"celery.accumulate", CHORD_POLL})
# The most characters in the headers of a message. To check a message takes up to a second.
_MAX_HEADER_CHARS = 128 * 1024
# The most tasks that calls after a message may name, besides those that are stored.
_MAX_TASKS = 1_000


def authorize(requester: Requester, message: CeleryMessage, submission: Submission) -> Authority:
    """Return the authority under which the message of a running job becomes a job.

    Owners who may run code may send anything. The jobs of others send data, and the calls that
    their own message holds.

    Parameters
    ----------
    submission
        The message as a call, with the fields of the job that the sender gives.

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
    try:
        sent = _Sent(message, submission, stored_calls.load(job["_id"]))
        is_trusted = sent.check()
    except (ArgumentError, RecursionError) as e:
        raise AccessException(str(e) or "The message is nested too deeply.") from e
    reason = sent.refusal(authority)
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


def _refuse_large(message: CeleryMessage) -> None:
    """Raise ArgumentError for a message that would take long to check."""
    reason = None
    if len(message.body) > MAX_BODY_CHARS:
        reason = f"{len(message.body):,} characters, more than the {MAX_BODY_CHARS:,}"
    elif size_of([message.headers, message.properties], _MAX_HEADER_CHARS) > _MAX_HEADER_CHARS:
        reason = f"headers of more than the {_MAX_HEADER_CHARS:,} characters"
    elif message_body.count_containers(message) > MAX_CONTAINERS:
        reason = f"more than the {MAX_CONTAINERS:,} lists and mappings"
    if reason is not None:
        raise ArgumentError(
            f"The message for {message.task} has {reason} of a job whose owner may not run code. "
            "Pass large data as a file."
        )


class _Sent:
    """A message that a job sends whose owner may not run code.

    Parameters
    ----------
    stored
        The calls that the job may send as they are.
    """

    def __init__(self, message: CeleryMessage, submission: Submission, stored: StoredCalls) -> None:
        self._message = message
        self._submission = submission
        self._stored = stored
        self._is_stored = False
        self._calls: list[FollowingCall] = []
        self._own: list[FollowingCall] = []

    def check(self) -> bool:
        """Check that the message holds data, and return whether all of its calls are stored ones.

        Those may hold the objects that Girder has stored.

        Raises
        ------
        ArgumentError
            If it may run code when it is opened.
        """
        message, stored = self._message, self._stored
        _refuse_large(message)
        body = message_body.load(message)
        if body is not None:
            calls = following_calls(message.task, body, strict=True)
            self._calls = list(itertools.islice(calls, MAX_CALLS + 1))
        if len(self._calls) > MAX_CALLS:
            raise ArgumentError(
                f"The message for {message.task} is followed by more than {MAX_CALLS:,} calls, the "
                "most that are possible."
            )
        if body is not None and stored.calls:
            self._is_stored = stored.continues(message, *message_body.arguments(message))
        # Those of a stored call have been compared with its own.
        known_hooks = message_body.hooks(message) if self._is_stored else ()
        message_body.check(message, stored.objects, [as_text(each) for each in known_hooks])
        self._own = stored.lacking(self._calls, 2 * MAX_BODY_CHARS)
        all_stored = (self._is_stored and not self._own) or self._collects_for_stored
        if stored.objects and not all_stored:
            message_body.check(message)
        return stored.trusted and all_stored

    @property
    def _collects(self) -> bool:
        return self._message.task in _COLLECTING

    @property
    def _collects_for_stored(self) -> bool:
        """Whether the task collects for stored calls. Followed by nothing, it gets data alone."""
        return self._collects and bool(self._calls) and not self._own

    def refusal(self, authority: Authority) -> str | None:
        """Return which call of the message the job may not start, and why; None if it may all."""
        message, submission = self._message, self._submission
        is_own = not self._is_stored and not self._collects
        may_be_local = self._is_stored or self._collects_for_stored
        if message.queue == LOCAL_QUEUE and may_be_local:
            submission = msgspec.structs.replace(submission, resources=None)
        excess = option_limits.find_excess(submission, any_field=True)
        if excess is not None:
            return f"{submission.task} on Dask: {excess}."
        if misplaced := FOLLOWING_CALLS & message.headers.keys():
            return f"calls that are in the headers of its message: {', '.join(sorted(misplaced))}"
        if is_own and names_local_queue(message.task):
            return f"{submission.task} on Dask: {option_limits.LOCAL_QUEUE_REASON}."
        for call in self._own:
            if call.is_local or names_local_queue(call.task):
                return f"{call.task[:500]} on Dask: {option_limits.LOCAL_QUEUE_REASON}."
        following = self._own_tasks()
        if len(following) > _MAX_TASKS:
            return f"calls of more than {_MAX_TASKS:,} tasks after {message.task}."
        return _refusal_of([submission] if is_own else [], following, authority)

    def _own_tasks(self) -> list[Submission]:
        """Return a call of each task that the message wants to be followed by."""
        named = [
            CeleryMessage(id=self._message.id, task=name, queue="", body="").task_name
            for name in {call.task[:500] or "?" for call in self._own} - _COLLECTING
        ]
        return [
            Submission(task=task, payload=self._submission.payload) for task in sorted(set(named))
        ]


def _refusal_of(
    submissions: list[Submission], following: list[Submission], authority: Authority
) -> str | None:
    for call in (*submissions, *following):
        reason = authorization.refusal(call, authority)
        if reason is not None:
            return f"{call.task} on Dask: {reason}"
    return None
