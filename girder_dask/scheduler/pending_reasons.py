"""Why jobs wait in the queue, said of those that wait for more than their turn.

A job may be parked until its inputs are there, and Dask may have no worker for it. Both are
looked at now and then. A reason that has lasted for a moment is told once, and so is that it
has gone. A job that waits for a thread of a busy worker waits for its turn, and nothing is
said of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from girder_dask.protocol.messages import JobEvent
from girder_dask.scheduler.cluster import Cluster
from girder_dask.scheduler.dependencies import DependencyGate
from girder_dask.scheduler.job_state import JobState

__all__ = ["PendingReasons"]

# Seconds that a reason lasts before it is told: workers come and go, and inputs end.
_DELAY = 2.0
# Seconds between two looks, and how many times as long they are apart as one takes.
_PAUSE = 0.5
_SHARE = 20
# Most jobs that are told in one look, so that a long queue takes turns with what happens.
_MOST = 500


@dataclass(slots=True)
class _Wait:
    """Why a job waits: now, and as Girder knows it."""

    attempt: int
    reason: str = ""
    told: str = ""
    since: float = 0.0
    lacking: float | None = None  # when it began to lack a worker

    def note(self, reason: str, now: float, *, lacks_worker: bool) -> None:
        if reason != self.reason:
            self.reason, self.since = reason, now
        if not lacks_worker:
            self.lacking = None
        elif self.lacking is None:
            self.lacking = now

    def is_news(self, now: float) -> bool:
        # What is true no more is taken back at once.
        return self.reason != self.told and (not self.reason or now - self.since >= _DELAY)


class PendingReasons:
    """Looks why jobs wait, and tells what is new.

    Parameters
    ----------
    hands
        The jobs in hand, by key.
    gate
        What jobs pass that need the values of others.
    cluster
        Dask.
    record
        Takes the job events that say why a job waits.
    refuse
        Ends a job, with a reason.
    clock
        Seconds that only grow.

    Attributes
    ----------
    timeout
        Seconds that a job may lack a worker before it is ended, None for ever.
    """

    def __init__(
        self,
        jobs: Mapping[str, JobState],
        gate: DependencyGate,
        cluster: Cluster,
        record: Callable[[JobEvent], None],
        refuse: Callable[[JobState, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.timeout: float | None = None
        self._jobs = jobs
        self._gate = gate
        self._cluster = cluster
        self._record = record
        self._refuse = refuse
        self._clock = clock
        self._waits: dict[JobState, _Wait] = {}

    def look(self) -> float:
        """Look at the queue, and return how many seconds later to look again."""
        began = time.perf_counter()
        now = self._clock()
        self._note(now)
        for job in list(islice(self._too_long(now), _MOST)):
            reason = self._waits.pop(job).reason
            self._refuse(
                job,
                f"There was no worker for this job for {self.timeout:g} s: {reason}. It is given "
                "up (girder.scheduler.no-worker-timeout). Start it again when there is one.",
            )
        for job in list(islice(self._news(now), _MOST)):
            wait = self._waits[job]
            wait.told = wait.reason
            self._record(JobEvent(job.spec.id, job.attempt, time=time.time(), waits=wait.reason))
        return max(_PAUSE, _SHARE * (time.perf_counter() - began))

    def _note(self, now: float) -> None:
        """Take note of why jobs wait, and forget those that wait no more."""
        found = {job: (why, False) for job, why in self._gate.blocked()}
        for key, why in self._cluster.unrunnable().items():
            job = self._jobs.get(key)
            if job is not None and job.is_queued:
                found[job] = (why, True)
        for job, wait in list(self._waits.items()):
            is_same = self._jobs.get(job.spec.key) is job and job.attempt == wait.attempt
            if not is_same or not job.is_queued or not (wait.told or job in found):
                # A run of it, or its end, has told Girder that it waits no more.
                del self._waits[job]
            elif job not in found:
                wait.note("", now, lacks_worker=False)
        for job, (why, lacks_worker) in found.items():
            wait = self._waits.setdefault(job, _Wait(job.attempt))
            wait.note(why, now, lacks_worker=lacks_worker)

    def _too_long(self, now: float) -> Iterator[JobState]:
        if self.timeout is not None:
            for job, wait in self._waits.items():
                if wait.lacking is not None and now - wait.lacking >= self.timeout:
                    yield job

    def _news(self, now: float) -> Iterator[JobState]:
        return (job for job, wait in self._waits.items() if wait.is_news(now))
