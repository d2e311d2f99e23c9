"""The scheduler's state of each job, and the table of all of them.

A job is in the table from its acceptance until Girder has acknowledged its end.

The attempt number is a fencing token: no two runs share one. A run may be executing, unreported,
as soon as Dask has assigned the job to a worker. Girder gives the first number with the job, and
the scheduler counts on from there. A run whose number the scheduler has counted does not call its
function before Girder has recorded that number: if this scheduler is lost, the next one counts on
from what Girder has.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from msgspec.structs import replace

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobEvent, JobSpec

__all__ = ["JobState", "JobTable", "RetryCause"]


class RetryCause(StrEnum):
    """Why a job got another attempt."""

    WORKER_LOST = "worker_lost"
    WORKER_LEFT = "worker_left"
    DASK = "dask"
    ERROR = "error"
    REQUESTED = "requested"


@dataclass(slots=True, eq=False)
class JobState:
    """The scheduler's state of one job, from acceptance until Girder has acknowledged its end.

    Attributes
    ----------
    attempt
        The current attempt, at least that of ``spec``.
    recorded_attempt
        The last attempt that Girder has recorded.
    recorded_at
        When Girder last confirmed an update, by the monotonic clock.
    failed_tries
        The number of runs that raised.
    run
        The admitted run: the only one whose events count.
    assigned
        Whether Dask has assigned this attempt to a worker, where a run may have started.
    worker
        The worker that has or last had the job. Set by :meth:`JobTable.place`.
    finished_on
        The worker on which Dask has seen the task finish.
    closed_runs
        Runs whose events are ignored from now on.
    lost_workers
        The workers that were lost while they had the job.
    blocked
        Whether the job waits for dependencies.
    cancel_timer
        Cancels the timer of the job's next try, or of its earliest start.
    times_forgotten
        How often Dask has forgotten the task.
    end_reported
        Whether its end was given to the recorder.
    acknowledged
        Whether Girder has acknowledged its end.
    result_stored
        Whether Girder has its result.
    nbytes
        The size of its result, once that is in the memory of a worker.
    finished
        Whether Dask has reported the end of the task too.
    """

    spec: JobSpec
    attempt: int
    recorded_attempt: int
    failed_tries: int = 0
    status: JobStatus = JobStatus.QUEUED
    run: str | None = None
    assigned: bool = False
    worker: str | None = None
    finished_on: str | None = None
    closed_runs: set[str] = field(default_factory=set)
    lost_workers: list[str] = field(default_factory=list)
    canceled: bool = False
    blocked: bool = False
    cancel_timer: Callable[[], None] | None = None
    times_forgotten: int = 0
    end_reported: bool = False
    acknowledged: bool = False
    result_stored: bool = False
    nbytes: int | None = None
    finished: bool = False
    recorded_at: float = 0.0

    @property
    def is_queued(self) -> bool:
        """Whether the job has yet to run, and no run of it is known."""
        return self.run is None and not self.end_reported and not self.canceled

    @property
    def may_retry(self) -> bool:
        """Whether the job is retried after a run that raised."""
        return self.failed_tries < self.spec.retries and not self.canceled

    def event(self, **fields: Any) -> JobEvent:
        """Return an event of the current attempt."""
        return JobEvent(id=self.spec.id, attempt=self.attempt, time=time.time(), **fields)

    def describe_losses(self, reason: Callable[[str], str]) -> str:
        """Return a sentence that names the lost workers, each with its reason; empty if none."""
        if not self.lost_workers:
            return ""
        lost = [(name, reason(name)) for name in self.lost_workers]
        named = ", ".join(f"{name} ({why})" if why else name for name, why in lost)
        return f" Workers lost: {named}."

    def stop_waiting(self) -> None:
        """Stop the wait for dependencies, for the next try or for the earliest start."""
        self.blocked = False
        if self.cancel_timer is not None:
            self.cancel_timer()
            self.cancel_timer = None


class JobTable:
    """The jobs of a scheduler, by id, by Dask key and by worker.

    Attributes
    ----------
    counts
        The number of jobs by state.
    retries
        The number of further attempts so far, by cause.
    """

    def __init__(self) -> None:
        self.counts = Counter[JobStatus]()
        self.retries = Counter[RetryCause]()
        self._by_id: dict[str, JobState] = {}
        self._by_key: dict[str, JobState] = {}
        self._by_worker: dict[str, set[JobState]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[JobState]:
        return iter(self._by_id.values())

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._by_id

    def get(self, job_id: str) -> JobState | None:
        """Return the job with an id."""
        return self._by_id.get(job_id)

    def of_ids(self, ids: Iterable[str]) -> list[JobState]:
        """Return the jobs with these ids, without unknown ones."""
        return [job for job_id in ids if (job := self._by_id.get(job_id))]

    def by_key(self, key: str) -> JobState | None:
        """Return the job whose current Dask key this is."""
        return self._by_key.get(key)

    def on_worker(self, worker: str) -> Collection[JobState]:
        """Return the jobs that a worker has or last had."""
        return self._by_worker.get(worker, ())

    def is_open(self, key: str) -> bool:
        """Return True if the end of the job with this key is not reported yet."""
        job = self._by_key.get(key)
        return job is not None and not job.end_reported

    def is_queued(self, key: str) -> bool:
        """Return True if the job with this key has yet to run, and no run of it is known."""
        job = self._by_key.get(key)
        return job is not None and job.is_queued

    def may_start(self, key: str, attempt: int) -> bool | None:
        """Return True if a run may call its function, None until Girder records its attempt."""
        job = self._by_key.get(key)
        if job is None or job.end_reported or job.canceled or job.attempt != attempt:
            return False
        return True if job.recorded_attempt >= attempt else None

    def add(self, spec: JobSpec) -> JobState:
        """Add a job in the attempt of its spec."""
        job = JobState(spec, spec.attempt, spec.attempt)
        self._by_id[spec.id] = self._by_key[spec.key] = job
        self.counts[job.status] += 1
        return job

    def set_status(self, job: JobState, status: JobStatus) -> None:
        """Set the state of a job."""
        if job.spec.id in self._by_id:
            self.counts[job.status] -= 1
            self.counts[status] += 1
        job.status = status

    def remove(self, job: JobState) -> None:
        """Remove a job."""
        self.place(job, None)
        if self._by_id.pop(job.spec.id, None) is not None:
            self.counts[job.status] -= 1
        self._by_key.pop(job.spec.key, None)

    def place(self, job: JobState, worker: str | None) -> None:
        """Record which worker has a job."""
        if job.worker == worker:
            return
        if job.worker is not None:
            jobs = self._by_worker[job.worker]
            jobs.discard(job)
            if not jobs:
                del self._by_worker[job.worker]
        if worker is not None:
            self._by_worker.setdefault(worker, set()).add(job)
        job.worker = worker

    def try_admit(self, job: JobState, event: JobEvent, assigned_to: str | None) -> bool:
        """Return True if an event comes from the admitted run, or one that can be admitted now.

        Parameters
        ----------
        assigned_to
            The worker to which Dask has assigned the job.
        """
        if event.run is None or event.run == job.run:
            return event.run is not None
        if event.run in job.closed_runs or job.run is not None:
            return False
        if event.worker not in (assigned_to, job.worker, job.finished_on):
            return False
        job.run = event.run
        self.place(job, event.worker)
        return True

    def next_attempt(self, job: JobState, cause: RetryCause) -> int:
        """Close the current run of a job and begin its next attempt; return its number."""
        self.retries[cause] += 1
        if job.run is not None:
            job.closed_runs.add(job.run)
        job.run = None
        self.place(job, None)
        job.assigned = False
        job.attempt += 1
        self.set_status(job, JobStatus.QUEUED)
        return job.attempt

    def renew_key(self, job: JobState) -> str:
        """Give a job the key of its current attempt; return the old key."""
        old = job.spec.key
        self._by_key.pop(old, None)
        job.spec = replace(job.spec, attempt=job.attempt)
        job.finished_on = job.nbytes = None
        self._by_key[job.spec.key] = job
        return old

    def on_recorded(self, job_id: str, attempt: int) -> None:
        """Record that Girder has recorded an attempt."""
        job = self._by_id.get(job_id)
        if job is not None:
            job.recorded_attempt = max(job.recorded_attempt, attempt)
            job.recorded_at = time.monotonic()
