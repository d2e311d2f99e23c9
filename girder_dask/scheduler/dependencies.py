"""Dependencies between jobs, and the gate that holds back jobs until theirs have succeeded.

A job whose arguments hold results of other jobs depends on them. It may start once each of them
has ended in SUCCESS. Girder is asked about those that this scheduler does not have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from girder_dask.jobs import FINAL, JobStatus
from girder_dask.scheduler.job_state import JobState, JobTable

if TYPE_CHECKING:
    from girder_dask.scheduler.result_retention import RetainedResults

__all__ = ["DependencyGate", "DependencyGraph", "DependencyOutcome"]

_END_PHRASES = {
    JobStatus.ERROR: "ended in ERROR",
    JobStatus.CANCELED: "was canceled",
    None: "no longer exists",
}


@dataclass(frozen=True, slots=True)
class DependencyOutcome:
    """The end of a job that others depend on; ``status`` is None for one that is deleted."""

    job_id: str
    status: JobStatus | None
    title: str = ""

    @property
    def is_success(self) -> bool:
        """Whether there is a result for dependents."""
        return self.status == JobStatus.SUCCESS

    def describe(self) -> str:
        """Return why a job that depends on this one cannot run.

        >>> DependencyOutcome('5f3c', JobStatus.ERROR, 'Count').describe()
        "Input job 5f3c ('Count') ended in ERROR, so this job cannot run."
        """
        title = f" ('{self.title}')" if self.title else ""
        return (
            f"Input job {self.job_id}{title} {_END_PHRASES[self.status]}, so this job cannot run."
        )


class DependencyGraph:
    """Dependencies and dependents of jobs, and the known ends of dependencies."""

    def __init__(self) -> None:
        self._dependencies: dict[str, Sequence[str]] = {}
        # Ids in the order of arrival, as the keys of a dictionary.
        self._dependents: dict[str, dict[str, None]] = {}
        self._outcomes: dict[str, DependencyOutcome] = {}

    def add(self, job_id: str, dependencies: Sequence[str]) -> None:
        """Add a job with the jobs that it depends on."""
        self._dependencies[job_id] = tuple(dependencies)
        for each in dependencies:
            self._dependents.setdefault(each, {})[job_id] = None

    def remove(self, job_id: str) -> list[str]:
        """Remove a job as a dependent; return its dependencies that have no dependents left."""
        free = []
        for each in self._dependencies.pop(job_id, ()):
            dependents = self._dependents.get(each)
            if dependents is None:  # named twice
                continue
            dependents.pop(job_id, None)
            if not dependents:
                del self._dependents[each]
                self._outcomes.pop(each, None)
                free.append(each)
        return free

    def jobs(self) -> Iterable[str]:
        """Return the ids of all jobs that depend on others."""
        return self._dependencies

    def dependencies(self) -> Iterable[str]:
        """Return the ids of all jobs that others depend on."""
        return self._dependents

    def has_dependents(self, job_id: str) -> bool:
        """Return True if any job depends on this one."""
        return job_id in self._dependents

    def dependents(self, job_id: str) -> list[str]:
        """Return the ids of the jobs that depend on this one."""
        return list(self._dependents.get(job_id, ()))

    def outcome(self, job_id: str) -> DependencyOutcome | None:
        """Return the end of a job, if it was recorded."""
        return self._outcomes.get(job_id)

    def record_outcome(self, outcome: DependencyOutcome) -> None:
        """Record the end of a job for as long as others depend on it."""
        if outcome.job_id in self._dependents:
            self._outcomes[outcome.job_id] = outcome


class DependencyGate:
    """The gate that decides which jobs may start.

    Parameters
    ----------
    jobs
        The table of jobs.
    graph
        The dependencies between jobs.
    retained
        The results on the cluster.
    """

    def __init__(self, jobs: JobTable, graph: DependencyGraph, retained: RetainedResults) -> None:
        self._jobs = jobs
        self._graph = graph
        self._retained = retained
        #: Set when Girder must be asked about the jobs of :meth:`unknown`.
        self.lookup_needed = asyncio.Event()

    def resolve(self, job: JobState) -> Mapping[str, str] | DependencyOutcome | None:
        """Resolve the dependencies of a job, and mark the job as blocked or not.

        Returns
        -------
        dict
            The job may start. The keys of results on the cluster, by the ids of dependencies.
        DependencyOutcome
            The job cannot run. The end of the dependency that failed.
        None
            The job is blocked.
        """
        dependencies = job.spec.dependencies or ()
        states = {job_id: self._state(job_id) for job_id in dependencies}
        for state in states.values():
            if isinstance(state, DependencyOutcome) and not state.is_success:
                job.blocked = False
                return state
        job.blocked = None in states.values()
        if not job.blocked:
            return {job_id: key for job_id, key in states.items() if isinstance(key, str)}
        if any(state is None and job_id not in self._jobs for job_id, state in states.items()):
            self.lookup_needed.set()
        return None

    def _state(self, job_id: str) -> str | DependencyOutcome | None:
        """Return the key of a job's result, or else the job's end, or None if it has not ended."""
        job = self._jobs.get(job_id)
        if job is not None and job.end_reported and job.status != JobStatus.SUCCESS:
            return DependencyOutcome(job_id, job.status, job.spec.title)
        key = self._retained.key(job_id)
        if key is not None or job is not None:
            # Without a key, the result can be fetched once Girder has acknowledged it.
            return key
        return self._graph.outcome(job_id)

    def blocked_dependents(self, job_id: str) -> list[JobState]:
        """Return the blocked jobs that depend on this one."""
        return [job for job in self._jobs.of_ids(self._graph.dependents(job_id)) if job.blocked]

    def blocked(self) -> Iterator[tuple[JobState, str]]:
        """Yield the blocked jobs, each with the reason."""
        for job in self._jobs.of_ids(self._graph.jobs()):
            if job.blocked:
                yield job, self._reason(job.spec.dependencies or ())

    def _reason(self, dependencies: Sequence[str]) -> str:
        if len(dependencies) > 1:
            count = f"{len(dependencies):,}"
            return f"it needs the values of {count} other jobs, which have not all ended"
        (job_id,) = dependencies
        job = self._jobs.get(job_id)
        title = f" ('{job.spec.title}')" if job is not None and job.spec.title else ""
        return f"it needs the value of job {job_id}{title}, which has not ended"

    def unknown(self) -> list[str]:
        """Return the ids of dependencies whose state this scheduler does not know."""
        return [job_id for job_id in self._graph.dependencies() if self._is_unknown(job_id)]

    def _is_unknown(self, job_id: str) -> bool:
        return job_id not in self._jobs and self._state(job_id) is None

    def record_answer(self, asked: Iterable[str], jobs: Mapping[str, Any]) -> list[str]:
        """Record Girder's answer about dependencies; return the ids of those that have ended.

        The answer holds job documents by id. A job that was asked for and is missing is deleted.
        """
        ended = []
        for job_id in [each for each in asked if self._is_unknown(each)]:
            job = jobs.get(job_id)
            status = None if job is None else JobStatus(job["status"])
            if status is None or status in FINAL:
                title = str(job.get("title") or "") if job is not None else ""
                self._graph.record_outcome(DependencyOutcome(job_id, status, title))
                ended.append(job_id)
        return ended
