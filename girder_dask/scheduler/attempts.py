"""The attempts of the jobs in hand. The number of each is used for one run, and for no other.

From when Dask places a job on a worker, a run may have begun there with its number. Girder
gives the first number with the job. The scheduler counts on from there, and no run with such a
number calls its function before Girder has heard of it: if this scheduler is lost, the next one
counts on from what Girder has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from girder_dask.jobs import JobStatus
from girder_dask.scheduler.cluster import Cluster
from girder_dask.scheduler.job_state import JobState

__all__ = ["Attempts"]


class Attempts:
    """Begins attempts and numbers them.

    Parameters
    ----------
    by_id, by_key
        The jobs in hand, by their ids and by the keys under which Dask has them.
    cluster
        Dask.
    say
        Records something of a job: its state, or a text for its log.
    """

    def __init__(
        self,
        by_id: Mapping[str, JobState],
        by_key: dict[str, JobState],
        cluster: Cluster,
        say: Callable[..., None],
    ) -> None:
        self._by_id = by_id
        self._by_key = by_key
        self._cluster = cluster
        self._say = say

    def next(self, job: JobState, why: str) -> None:
        """Hear the present run of a job no more, and begin another attempt."""
        job.close_run()
        self._cluster.set_attempt(job.spec.key, job.attempt)
        self._say(job, status=int(JobStatus.QUEUED), log=f"{why} as attempt {job.attempt}.\n")

    def take_fresh_key(self, job: JobState) -> None:
        """Leave the present key to Dask; the next run has another one."""
        self._by_key.pop(job.spec.key, None)
        self._cluster.drop([job.spec.key])
        job.spec = replace(job.spec, attempt=job.attempt)
        job.ended_on = job.nbytes = None
        self._by_key[job.spec.key] = job

    def heard(self, job_id: str, attempt: int) -> None:
        """Take note that Girder has heard of an attempt."""
        job = self._by_id.get(job_id)
        if job is not None:
            job.recorded_attempt = max(job.recorded_attempt, attempt)

    def may_start(self, key: str, attempt: int) -> bool | None:
        """Say whether a run may call its function; None while Girder has not heard of it."""
        job = self._by_key.get(key)
        if job is None or job.end_reported or job.canceled or job.attempt != attempt:
            return False
        return True if job.recorded_attempt >= attempt else None
