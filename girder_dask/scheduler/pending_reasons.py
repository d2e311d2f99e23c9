"""Reasons why jobs are pending, reported for jobs that wait for more than their turn.

A job may be blocked by its dependencies, or no worker may be able to run it. This is checked
periodically. A reason that has lasted for a moment is reported once, and so is its end. Nothing is
reported for a job that waits for a thread of a busy worker, or until a time that Girder knows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from girder_dask.scheduler.cluster_interface import Cluster
from girder_dask.scheduler.event_recorder import Recorder
from girder_dask.scheduler.job_state import JobState, JobTable
from girder_dask.scheduler.job_transitions import JobTransitions

__all__ = ["PendingReasons"]

# How long a reason lasts before it is reported: workers come and go, and dependencies end.
_REPORT_DELAY_S = 2.0
# The least pause between two scans, and the pause as a multiple of the duration of a scan.
_LEAST_PAUSE_S = 0.5
_PAUSE_FACTOR = 20
# How many jobs one scan reports, so that a long queue takes turns with other work.
_MAX_REPORTS_PER_SCAN = 500


@dataclass(slots=True)
class _Pending:
    """The reason why a job is pending, now and as last reported to Girder."""

    attempt: int
    reason: str = ""
    reported: str = ""
    since: float = 0.0
    unrunnable_since: float | None = None

    def update(self, reason: str, now: float, *, unrunnable: bool) -> None:
        if reason != self.reason:
            self.reason, self.since = reason, now
        if not unrunnable:
            self.unrunnable_since = None
        elif self.unrunnable_since is None:
            self.unrunnable_since = now

    def is_due(self, now: float) -> bool:
        # The end of a reason is reported at once.
        lasts = not self.reason or now - self.since >= _REPORT_DELAY_S
        return self.reason != self.reported and lasts


class PendingReasons:
    """Periodic scan for the reasons why jobs are pending, with reports of changes.

    Parameters
    ----------
    jobs
        The table of jobs.
    transitions
        Starts and ends jobs.
    cluster
        The Dask cluster.
    recorder
        Reports events to Girder.
    timeout_s
        Seconds after which a job that no worker can run fails; None for no limit.
    """

    def __init__(
        self,
        jobs: JobTable,
        transitions: JobTransitions,
        cluster: Cluster,
        recorder: Recorder,
        *,
        timeout_s: float | None = None,
    ) -> None:
        self.timeout_s = timeout_s
        self._jobs = jobs
        self._transitions = transitions
        self._cluster = cluster
        self._recorder = recorder
        self._pending: dict[JobState, _Pending] = {}

    def scan(self) -> float:
        """Scan the queue, and return how many seconds later to scan it again."""
        began = time.perf_counter()
        now = self._cluster.time()
        self._update(now)
        for job in list(islice(self._timed_out(now), _MAX_REPORTS_PER_SCAN)):
            reason = self._pending.pop(job).reason
            self._transitions.fail(
                job,
                f"No worker could run this job for {self.timeout_s:g} s: {reason}. It is not "
                "retried (girder.scheduler.no-worker-timeout). Start it again when a worker can.",
            )
        for job in list(islice(self._due(now), _MAX_REPORTS_PER_SCAN)):
            pending = self._pending[job]
            pending.reported = pending.reason
            self._recorder.record(job.event(pending_reason=pending.reason))
        return max(_LEAST_PAUSE_S, _PAUSE_FACTOR * (time.perf_counter() - began))

    def _update(self, now: float) -> None:
        """Update the reasons, and remove jobs that are no longer pending."""
        found = {job: (why, False) for job, why in self._transitions.dependencies.blocked()}
        for key, why in self._cluster.unrunnable().items():
            job = self._jobs.by_key(key)
            if job is not None and job.is_queued:
                found[job] = (why, True)
        for job, pending in list(self._pending.items()):
            is_same = self._jobs.by_key(job.spec.key) is job and job.attempt == pending.attempt
            if not is_same or not job.is_queued or not (pending.reported or job in found):
                # The run or the end of the job shows Girder that it is no longer pending.
                del self._pending[job]
            elif job not in found:
                pending.update("", now, unrunnable=False)
        for job, (why, unrunnable) in found.items():
            pending = self._pending.setdefault(job, _Pending(job.attempt))
            pending.update(why, now, unrunnable=unrunnable)

    def _timed_out(self, now: float) -> Iterator[JobState]:
        if self.timeout_s is not None:
            for job, pending in self._pending.items():
                since = pending.unrunnable_since
                if since is not None and now - since >= self.timeout_s:
                    yield job

    def _due(self, now: float) -> Iterator[JobState]:
        return (job for job, pending in self._pending.items() if pending.is_due(now))
