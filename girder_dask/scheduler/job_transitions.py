"""The transitions of a job that the scheduler decides: start, retry, end, removal.

Each transition updates the table of jobs, informs Dask and Girder, and continues with the jobs
that depend on this one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone

from msgspec.structs import replace

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobEvent, JobSpec, RetryRequest
from girder_dask.scheduler.cluster_interface import Cluster
from girder_dask.scheduler.dependencies import DependencyGate, DependencyGraph, DependencyOutcome
from girder_dask.scheduler.event_recorder import Recorder
from girder_dask.scheduler.job_state import JobState, JobTable, RetryCause
from girder_dask.scheduler.result_retention import RetainedResults
from girder_dask.utils.backoff import Backoff
from girder_dask.utils.bounded_dict import BoundedDict

__all__ = ["JobTransitions"]

_MAX_ENDED_JOBS = 10_000
# How long after its end a job may arrive once more, from a request that Girder began before.
_LATE_ARRIVAL_S = 60.0
# The longest timer. After it the clock is asked again, which may have been set meanwhile.
_MAX_TIMER_S = 600.0


class JobTransitions:
    """The start, retry, end and removal of jobs.

    Parameters
    ----------
    jobs
        The table of jobs.
    cluster
        The Dask cluster.
    recorder
        Reports events to Girder.
    backoff
        The delays between the tries of a job that raises.
    result_ttl_s, max_result_bytes
        Limits of the retained results that Girder does not have: their age and their size.
    """

    def __init__(
        self,
        jobs: JobTable,
        cluster: Cluster,
        recorder: Recorder,
        *,
        backoff: Backoff,
        result_ttl_s: float,
        max_result_bytes: int,
    ) -> None:
        self._jobs = jobs
        self._cluster = cluster
        self._recorder = recorder
        self._backoff = backoff
        self._graph = DependencyGraph()
        self._ended = BoundedDict[str, tuple[int, float]](_MAX_ENDED_JOBS)
        self._changed: deque[str] = deque()
        self._starts_dependents = False
        #: The results that stay on the cluster.
        self.retained = RetainedResults(
            cluster, self._graph, ttl_s=result_ttl_s, max_bytes=max_result_bytes
        )
        #: The gate that decides which jobs may start.
        self.dependencies = DependencyGate(jobs, self._graph, self.retained)

    # -- begin ------------------------------------------------------------------------------

    def add(self, spec: JobSpec) -> JobState:
        """Add a job to the table, with what it depends on."""
        job = self._jobs.add(spec)
        if spec.dependencies:
            self._graph.add(spec.id, spec.dependencies)
        return job

    def has_just_ended(self, spec: JobSpec) -> bool:
        """Return True if a job ended in this attempt a moment ago, as Girder may not know yet."""
        attempt, ended_at = self._ended.get(spec.id, (0, 0.0))
        return spec.attempt <= attempt and self._cluster.time() - ended_at < _LATE_ARRIVAL_S

    def report_state(self, job: JobState) -> None:
        """Report again that the scheduler has a job, and whether it runs.

        Girder's database may have lost what it had acknowledged.
        """
        pending = self._recorder.has_pending_state(job.spec.id, job.attempt)
        if not (job.end_reported or job.canceled or pending):
            status = None if job.status == JobStatus.QUEUED else job.status
            self._recorder.record(job.event(status=status))

    def start(self, jobs: Iterable[JobState]) -> None:
        """Submit jobs whose time has come and whose dependencies are met.

        The others wait, or end in ERROR if a dependency has failed.
        """
        ready: list[JobSpec] = []
        values: dict[str, Mapping[str, str]] = {}
        for job in jobs:
            if job.spec.not_before is not None and self._delay(job, job.spec.not_before):
                continue
            keys = self.dependencies.resolve(job) if job.spec.dependencies else {}
            if isinstance(keys, DependencyOutcome):
                self.fail(job, keys.describe())
            elif keys is not None:
                ready.append(job.spec)
                if keys:
                    values[job.spec.id] = keys
        if ready:
            self._cluster.submit(ready, values)

    def _delay(self, job: JobState, not_before: float) -> bool:
        """Start a job later if its time has not come. Return True if so."""
        delay_s = not_before - time.time()
        if delay_s <= 0:
            return False

        def resume() -> None:
            job.cancel_timer = None
            self.start([job])

        job.cancel_timer = self._cluster.call_later(min(delay_s, _MAX_TIMER_S), resume)
        return True

    def start_dependents(self, job_id: str) -> None:
        """Start the blocked dependents of a job. If one ends at once, its dependents follow."""
        self._changed.append(job_id)
        if self._starts_dependents:
            return
        self._starts_dependents = True
        try:
            while self._changed:
                self.start(self.dependencies.blocked_dependents(self._changed.popleft()))
        finally:
            self._starts_dependents = False

    # -- retry ------------------------------------------------------------------------------

    def next_attempt(self, job: JobState, cause: RetryCause, why: str) -> None:
        """Ignore the current run of a job from now on, and begin its next attempt."""
        attempt = self._jobs.next_attempt(job, cause)
        self._cluster.set_attempt(job.spec.key, attempt)
        log = f"{why} as attempt {attempt}.\n"
        self._recorder.record(job.event(status=int(JobStatus.QUEUED), log=log))

    def renew_key(self, job: JobState) -> None:
        """Release the present key of a job, and use another one for its next run."""
        self._cluster.release([self._jobs.renew_key(job)])

    def retry(self, job: JobState) -> None:
        """Begin the next try of a job that raised, after its delay."""
        job.failed_tries += 1
        delay_s = self._backoff.delay_s(job.failed_tries)
        what = f"Try {job.failed_tries} of {job.spec.retries + 1} failed; the job is retried"
        why = f"{what} in {delay_s:g} s" if delay_s else what
        self.next_attempt(job, RetryCause.ERROR, why)
        self.renew_key(job)

        def resume() -> None:
            job.cancel_timer = None
            self.start([job])

        job.cancel_timer = self._cluster.call_later(delay_s, resume)

    def retry_as_requested(self, job: JobState, event: JobEvent, request: RetryRequest) -> bool:
        """Begin the next attempt of a job, for which the last event of a run has asked.

        It starts when its time has come. A job that was canceled meanwhile ends. Returns True.
        """
        self._recorder.record(replace(event, attempt=job.attempt, retry=None))
        if job.canceled:
            self.end(job, JobStatus.CANCELED)
            return True
        attempt = self._jobs.next_attempt(job, RetryCause.REQUESTED)
        job.spec = request.apply_to(job.spec)
        moment = datetime.fromtimestamp(request.not_before, timezone.utc)
        later = request.not_before > time.time()
        when = f" at {moment:%Y-%m-%d %H:%M:%S} UTC" if later else ""
        log = f"The task asks to be tried again{when} as attempt {attempt}.\n"
        self._recorder.record(job.event(status=int(JobStatus.QUEUED), log=log, retry=request))
        self.renew_key(job)
        self.start([job])
        return True

    # -- end --------------------------------------------------------------------------------

    def fail(self, job: JobState, reason: str) -> None:
        """End a job in ERROR."""
        self.end(job, JobStatus.ERROR, log=reason + "\n", error=reason)

    def end(
        self, job: JobState, status: JobStatus, *, log: str | None = None, error: str | None = None
    ) -> None:
        """End a job in a final state, and report it."""
        self._jobs.set_status(job, status)
        self._recorder.record(job.event(status=int(status), log=log, error=error))
        self.on_end_reported(job)

    def on_end_reported(self, job: JobState) -> None:
        """Handle a job whose end the recorder has received."""
        job.end_reported = True
        self._stop_waiting(job)
        if job.status != JobStatus.SUCCESS or job.nbytes is not None:
            self.finish(job)
        self._release_unneeded(job.spec.id)

    def finish(self, job: JobState) -> None:
        """Retain or release the result of a job whose end both its run and Dask have reported."""
        if job.finished:
            return
        job.finished = True
        if job.status != JobStatus.SUCCESS or job.nbytes is None:
            self._cluster.release([job.spec.key])
        else:
            self.retained.add(job.spec.id, job.spec.key, job.nbytes, stored=job.result_stored)
        self.start_dependents(job.spec.id)
        if job.acknowledged:
            self.remove(job)

    def remove(self, job: JobState) -> None:
        """Remove a job whose end Girder has acknowledged."""
        self._remove(job)
        if job.end_reported:
            self._ended[job.spec.id] = job.attempt, self._cluster.time()
            self._graph.record_outcome(DependencyOutcome(job.spec.id, job.status, job.spec.title))
        self.start_dependents(job.spec.id)

    def abandon(self, job: JobState) -> None:
        """Remove a job that is no longer this scheduler's, with its result."""
        self._remove(job)
        self.retained.release(job.spec.id)
        self._cluster.release([job.spec.key])
        self.start_dependents(job.spec.id)

    def _stop_waiting(self, job: JobState) -> None:
        job.stop_waiting()

    def _remove(self, job: JobState) -> None:
        self._stop_waiting(job)
        self._jobs.remove(job)
        self._recorder.forget(job.spec.id, job.attempt)
        self._release_unneeded(job.spec.id)

    def _release_unneeded(self, job_id: str) -> None:
        """Release the results that only this job needed."""
        for dependency in self._graph.remove(job_id):
            self.retained.release_if_unneeded(dependency)
