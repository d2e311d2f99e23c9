"""Dependencies between jobs: which wait for the results of which others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from girder_dask.jobs import JobStatus

__all__ = ["DependencyGraph", "DependencyOutcome"]

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
