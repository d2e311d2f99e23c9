"""The states of a job and their possible order."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from enum import IntEnum
from typing import Any

__all__ = [
    "FINAL",
    "HANDLER",
    "PREDECESSORS",
    "JobStatus",
    "can_follow",
    "waits_for",
]

#: The ``handler`` of the job documents that this package runs.
HANDLER = "dask_handler"


class JobStatus(IntEnum):
    """The states of a job.

    0 to 5 are the numbers of ``girder_jobs.constants.JobStatus``, 820 to 824 those of
    ``girder_plugin_worker.status.CustomJobStatus``, which existing clients understand.
    """

    INACTIVE = 0
    QUEUED = 1
    RUNNING = 2
    SUCCESS = 3
    ERROR = 4
    CANCELED = 5
    FETCHING_INPUT = 820
    CONVERTING_INPUT = 821
    CONVERTING_OUTPUT = 822
    PUSHING_OUTPUT = 823
    CANCELING = 824


#: The states that a job never leaves.
FINAL = frozenset({JobStatus.SUCCESS, JobStatus.ERROR, JobStatus.CANCELED})

_ACTIVE = frozenset(
    {
        JobStatus.FETCHING_INPUT,
        JobStatus.CONVERTING_INPUT,
        JobStatus.RUNNING,
        JobStatus.CONVERTING_OUTPUT,
        JobStatus.PUSHING_OUTPUT,
    }
)
_UNFINISHED = _ACTIVE | {JobStatus.INACTIVE, JobStatus.QUEUED}

#: For each state, the states that it may follow. An active job returns to QUEUED when its worker
#: is lost and it is retried. A job that had finished before it was canceled keeps its end.
PREDECESSORS: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.INACTIVE: frozenset(),
    JobStatus.QUEUED: _ACTIVE | {JobStatus.INACTIVE},
    JobStatus.FETCHING_INPUT: frozenset({JobStatus.QUEUED}),
    JobStatus.CONVERTING_INPUT: frozenset(
        {JobStatus.QUEUED, JobStatus.FETCHING_INPUT, JobStatus.RUNNING}
    ),
    JobStatus.RUNNING: frozenset(
        {JobStatus.QUEUED, JobStatus.FETCHING_INPUT, JobStatus.CONVERTING_INPUT}
    ),
    JobStatus.CONVERTING_OUTPUT: frozenset({JobStatus.RUNNING}),
    JobStatus.PUSHING_OUTPUT: frozenset({JobStatus.RUNNING, JobStatus.CONVERTING_OUTPUT}),
    JobStatus.CANCELING: _UNFINISHED,
    JobStatus.CANCELED: _UNFINISHED | {JobStatus.CANCELING},
    JobStatus.ERROR: _UNFINISHED | {JobStatus.CANCELING},
    JobStatus.SUCCESS: _ACTIVE | {JobStatus.CANCELING},
}


def can_follow(current: int, new: int) -> bool:
    """Return True if a job in state ``current`` may go to state ``new``.

    >>> can_follow(JobStatus.QUEUED, JobStatus.RUNNING)
    True
    >>> can_follow(JobStatus.SUCCESS, JobStatus.ERROR)
    False
    """
    return current in PREDECESSORS[JobStatus(new)]


def waits_for(job: Mapping[str, Any]) -> str:
    """Return why a job waits in the queue, as its document says; empty if there is no reason.

    >>> waits_for({'status': 1, 'dask': {'waits': 'no worker is connected to the scheduler'}})
    'no worker is connected to the scheduler'
    >>> waits_for({'status': 1, 'dask': {'not_before': '2126-11-30T12:00:00+00:00'}})
    'it is to start at 2126-11-30 12:00:00 UTC'
    >>> waits_for({'status': 1})
    ''
    """
    if job.get("status") != JobStatus.QUEUED:
        return ""
    dask = job.get("dask") or {}
    moment = _moment(dask.get("not_before"))
    if moment is not None and moment > datetime.now(timezone.utc):
        return f"it is to start at {moment:%Y-%m-%d %H:%M:%S} UTC"
    return str(dask.get("waits") or "")


def _moment(given: Any) -> datetime | None:
    """Return a time of a job document, which Girder sends as text, in UTC."""
    try:
        moment = datetime.fromisoformat(given) if isinstance(given, str) else given
    except ValueError:
        return None
    if not isinstance(moment, datetime):
        return None
    # MongoDB stores UTC. Girder reads its times with their zone, other programs without.
    return moment.astimezone(timezone.utc) if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
