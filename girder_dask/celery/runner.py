"""Execution of a message of Celery, by Celery's own tracer, within the run of a job."""

from __future__ import annotations

import base64
import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from girder_dask.celery import message_body, retries
from girder_dask.celery.moments import timestamp_of
from girder_dask.celery.run_state import RUN_HEADER, TOKEN_HEADER, RunState, current
from girder_dask.celery.worker_app import find_task, worker_app
from girder_dask.errors import ArgumentError, JobCanceled, JobFailed
from girder_dask.jobs import JobStatus
from girder_dask.protocol.celery_message import FOLLOWING_CALLS, CeleryMessage
from girder_dask.tasks.running_job import current_job

__all__ = ["run_message"]

SoftTimeLimit = Callable[[float, type[Exception]], contextlib.AbstractContextManager[None]]


def run_message(
    message: CeleryMessage,
    package: str | None,
    note: bytes | None = None,
    *,
    trusted: bool,
    soft_time_limit: SoftTimeLimit | None = None,
    temporary_directory: str | None = None,
) -> Any:
    """Run the task of a message, and return its value.

    Parameters
    ----------
    message
        The message.
    package
        The distribution with the task, for errors.
    note
        What the last run has left, if its task asked to be tried again.
    trusted
        Whether the message may run code of whoever sent it when it is opened.
    soft_time_limit
        Makes a context manager that raises an exception in this thread after some seconds.
    temporary_directory
        Where temporary files go in a process that runs nothing else. girder_worker leaves them if
        the process is killed.

    Raises
    ------
    RetryRequested
        If the task asks to be tried again.
    Exception
        Whatever the task raises.
    """
    job = current_job()
    if temporary_directory is not None:
        tempfile.tempdir = temporary_directory
    first = message
    if note is not None:
        message = retries.continued(message, note)
    state = RunState(job, message.id, f"dask@{job.request.hostname}")
    token = current.set(state)
    try:
        value, result_state = _traced(
            state, message, package, trusted=trusted, soft_time_limit=soft_time_limit
        )
    finally:
        current.reset(token)
    if state.again is not None and result_state == "RETRY":
        raise retries.request(message, state.again, first=first, trusted=trusted)
    if state.error is not None and result_state != "SUCCESS":
        raise state.error
    if state.ended == JobStatus.CANCELED:
        raise JobCanceled(job_id=job.id)
    if state.ended == JobStatus.ERROR:
        raise JobFailed("The task has set its job to ERROR.", job_id=job.id)
    return value


def _traced(
    state: RunState,
    message: CeleryMessage,
    package: str | None,
    *,
    trusted: bool,
    soft_time_limit: SoftTimeLimit | None,
) -> tuple[Any, str]:
    """Run a message with Celery's tracer. Return the value and the state of the task."""
    app = worker_app()
    from celery.app.trace import trace_task

    _refuse_expired(message.headers.get("expires"))
    args, kwargs, embed = _opened(app, message, trusted=trusted)
    task = find_task(message.task, package)
    app.set_current()
    request = _request(state, message, args, kwargs, embed or {})
    with _soft_limit(message, task, soft_time_limit):
        value, info, _, _ = trace_task(
            task, message.id, args, kwargs, request, app=app, hostname=state.hostname
        )
    if info is None:
        return None if _ignores_result(message, task) else value, "SUCCESS"
    if info.state == "REJECTED":
        raise info.retval
    return None, str(info.state)


def _ignores_result(message: CeleryMessage, task: Any) -> bool:
    given = message.headers.get("ignore_result")
    return bool(task.ignore_result if given is None else given)


def _soft_limit(
    message: CeleryMessage, task: Any, soft_time_limit: SoftTimeLimit | None
) -> contextlib.AbstractContextManager[None]:
    from celery.exceptions import SoftTimeLimitExceeded

    seconds = (message.headers.get("timelimit") or (None, None))[1] or task.soft_time_limit
    if not seconds or soft_time_limit is None:
        return contextlib.nullcontext()
    return soft_time_limit(float(seconds), SoftTimeLimitExceeded)


def _request(
    state: RunState,
    message: CeleryMessage,
    args: Any,
    kwargs: Any,
    embed: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the request of a task, with the address of Girder and the token of this job."""
    job = state.job
    api_url = job.request.girder_api_url
    properties = message.properties
    token = None if job.girder_client is None else job.girder_client.token
    if message.headers.get(TOKEN_HEADER) == "":
        token = ""
    return {
        # Calls that follow are embedded in the body, where they were checked.
        **{name: each for name, each in message.headers.items() if name not in FOLLOWING_CALLS},
        # Nothing else that is embedded was compared with what the sender may send.
        **{name: each for name, each in embed.items() if name in FOLLOWING_CALLS},
        "id": message.id,
        "task": message.task,
        "args": args,
        "kwargs": kwargs,
        "hostname": state.hostname,
        "is_eager": False,
        "delivery_info": {
            **_route(properties.get("delivery_info")),
            "priority": properties.get("priority"),
            "redelivered": False,
        },
        "reply_to": properties.get("reply_to"),
        "correlation_id": properties.get("correlation_id"),
        "girder_api_url": api_url,
        "apiUrl": api_url,
        TOKEN_HEADER: token,
        # For tasks that look into it. It holds no token.
        "jobInfoSpec": {
            "method": "PUT",
            "url": f"{api_url}/job/{job.id}",
            "reference": job.id,
            "headers": {},
            "logPrint": True,
        },
        RUN_HEADER: job.id,
    }


def _route(delivery_info: Any) -> dict[str, str]:
    """Return where a message was sent to. Celery believes other fields, such as ``is_eager``."""
    given = delivery_info if isinstance(delivery_info, Mapping) else {}
    named = {name: given.get(name) for name in ("exchange", "routing_key")}
    return {name: each for name, each in named.items() if isinstance(each, str)}


def _opened(app: Any, message: CeleryMessage, *, trusted: bool) -> tuple[Any, Any, Any]:
    """Return the arguments of a message, and what is embedded in it."""
    from girder_dask.celery import serializer

    body = message_body.load(message) if trusted else message_body.check(message)
    if body is None:
        opened = _open_other(app, message)
    else:
        in_parts = not message_body.has_references(message)
        opened = serializer.restore_body(body, in_parts=in_parts)
    if not isinstance(opened, (list, tuple)) or len(opened) != 3:
        raise ArgumentError(
            f"The message of {message.task} is not of protocol 2 of Celery, which has arguments, "
            "keyword arguments and what is embedded. Set task_protocol back to 2."
        )
    args, kwargs, embed = opened
    return args, kwargs, embed


def _open_other(app: Any, message: CeleryMessage) -> Any:
    """Return the body of a message that is in none of girder_worker's forms."""
    from kombu.serialization import loads, prepare_accept_content

    is_encoded = message.body_encoding == "base64"
    return loads(
        base64.b64decode(message.body) if is_encoded else message.body,
        message.content_type,
        message.content_encoding,
        accept=prepare_accept_content(app.conf.accept_content),
    )


def _refuse_expired(expires: Any) -> None:
    """Raise JobCanceled if a message was to begin before now."""
    limit = timestamp_of(expires)
    if limit is not None and limit < time.time():
        reason = f"The task has expired: it was to begin before {expires}."
        current_job().job_manager.write(f"{reason}\n")
        raise JobCanceled(reason)
