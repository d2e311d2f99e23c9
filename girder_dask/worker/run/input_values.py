"""The results of other jobs among the arguments of a call.

Dask passes the results that it still has. The others are fetched from Girder, with the token of
the job that needs them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import requests

from girder_dask.errors import TransformError
from girder_dask.http.request_errors import is_transient
from girder_dask.jobs import JobStatus
from girder_dask.protocol.payload import Call, Dependency, NotOpened, Unpicklable, open_value
from girder_dask.protocol.wire_json import from_json
from girder_dask.tasks.running_job import RunningJob
from girder_dask.utils.pytree import tree_map

__all__ = ["resolved"]

_REMEDY = (
    "Start that job again and pass its new JobResult, or have it upload what it makes to "
    "Girder, and pass GirderFileId(file_id)."
)


def resolved(call: Call, values: Mapping[str, Any] | None, job: RunningJob) -> Call:
    """Return a call with the results of other jobs in place of its dependencies.

    Parameters
    ----------
    values
        Results that Dask has passed, by job id.
    job
        The job that needs them.

    Raises
    ------
    TransformError
        If a result is not available. The message names its job.
    """
    known = dict(values or {})

    def value_of(leaf: Any) -> Any:
        if not isinstance(leaf, Dependency):
            return leaf
        if leaf.job_id not in known:
            known[leaf.job_id] = _fetch(leaf.job_id, job)
        value = known[leaf.job_id]
        if isinstance(value, Unpicklable):
            raise _unavailable(leaf.job_id, job, f"returned a value, but {value.reason}")
        return value

    arguments = tree_map(value_of, call.args), tree_map(value_of, dict(call.kwargs))
    return replace(call, args=arguments[0], kwargs=arguments[1])


def _fetch(job_id: str, job: RunningJob) -> Any:
    if job.girder_client is None:
        raise TransformError(
            f"The result of input job {job_id} cannot be fetched, as this worker does not know the "
            "address of Girder. The operator sets girder.api-url for the scheduler or for this "
            "worker, or dask.api_url in Girder."
        )
    try:
        answer = from_json(job.girder_client.get(f"dask/job/{quote(job_id, safe='')}/result"))
    except requests.HTTPError as e:
        status = e.response.status_code if e.response is not None else None
        raise TransformError(_refusal(job_id, status), permanent=not is_transient(e)) from e
    except requests.RequestException as e:
        raise TransformError(
            f"The result of input job {job_id} cannot be fetched: Girder did not answer "
            f"({type(e).__name__}: {e}). Start this job again.",
            permanent=not is_transient(e),
        ) from e
    if answer["status"] != JobStatus.SUCCESS:
        state = JobStatus(answer["status"]).name
        raise _unavailable(job_id, job, f"is in state {state}, so it has no result")
    if answer["value"] is None:
        reason = answer["error"] or "it is no longer kept"
        raise _unavailable(job_id, job, f"returned a value, but {reason}")
    try:
        return open_value(answer["value"], unpickle=True)
    except NotOpened as e:
        raise _unavailable(job_id, job, f"returned a value that {e}") from e


def _refusal(job_id: str, status: int | None) -> str:
    if status in (401, 403):
        return (
            f"The result of input job {job_id} cannot be used: the owner of this job may not read "
            "that job. Ask its owner for access."
        )
    if status in (400, 404):
        return f"Input job {job_id} no longer exists, so this job cannot run. {_REMEDY}"
    return f"The result of input job {job_id} cannot be fetched: Girder answered {status}."


def _unavailable(job_id: str, job: RunningJob, what: str) -> TransformError:
    title = ""
    if job.girder_client is not None:
        with contextlib.suppress(requests.RequestException):
            title = f" ({job.girder_client.get(f'job/{job_id}')['title']!r})"
    return TransformError(f"Input job {job_id}{title} {what}. {_REMEDY}", permanent=True)
