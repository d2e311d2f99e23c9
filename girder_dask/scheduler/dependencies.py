"""Which jobs wait for the values of which others.

A job whose arguments hold the values of other jobs depends on these. It passes the gate when
each of them has ended well. Girder is asked for those that are not in hand here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from girder_dask.jobs import FINAL, JobStatus
from girder_dask.protocol.messages import JobSpec
from girder_dask.scheduler.job_state import JobState
from girder_dask.scheduler.retention import RetainedResults

__all__ = ["DependencyGate", "DependencyGraph", "DependencyOutcome"]

Submit = Callable[[Sequence[JobSpec], Mapping[str, Mapping[str, str]]], None]

_HOW = {
    JobStatus.ERROR: "ended in ERROR",
    JobStatus.CANCELED: "was canceled",
    None: "no longer exists",
}


@dataclass(frozen=True, slots=True)
class DependencyOutcome:
    """How an input job ended; ``status`` is None for a job that is gone."""

    job_id: str
    status: JobStatus | None
    title: str = ""

    @property
    def good(self) -> bool:
        """Whether there is a value that others can use."""
        return self.status == JobStatus.SUCCESS

    def complaint(self) -> str:
        """Say why a job that needs this one cannot run.

        >>> DependencyOutcome('5f3c', JobStatus.ERROR, 'Count').complaint()
        "Input job 5f3c ('Count') ended in ERROR, so this job cannot run."
        """
        title = f" ('{self.title}')" if self.title else ""
        return f"Input job {self.job_id}{title} {_HOW[self.status]}, so this job cannot run."


class DependencyGraph:
    """Who depends on whom, and what is known of the ends of those that others depend on."""

    def __init__(self) -> None:
        self._inputs: dict[str, Sequence[str]] = {}
        # Ids in the order in which they came, as the keys of a dictionary.
        self._dependents: dict[str, dict[str, None]] = {}
        self._outcomes: dict[str, DependencyOutcome] = {}

    def add(self, job_id: str, inputs: Sequence[str]) -> None:
        """Take note that a job needs the values of others."""
        self._inputs[job_id] = tuple(inputs)
        for each in inputs:
            self._dependents.setdefault(each, {})[job_id] = None

    def all(self) -> Iterable[str]:
        """Return the ids of all jobs that need others."""
        return self._inputs

    def remove(self, job_id: str) -> list[str]:
        """Take note that a job needs nothing any more; return the inputs that nobody needs now."""
        free = []
        for each in self._inputs.pop(job_id, ()):
            dependents = self._dependents.get(each)
            if dependents is None:  # named twice
                continue
            dependents.pop(job_id, None)
            if not dependents:
                del self._dependents[each]
                self._outcomes.pop(each, None)
                free.append(each)
        return free

    def inputs(self) -> Iterable[str]:
        """Return the ids of all jobs that others depend on."""
        return self._dependents

    def is_needed(self, job_id: str) -> bool:
        """Say whether any job depends on this one."""
        return job_id in self._dependents

    def dependents(self, job_id: str) -> list[str]:
        """Return the ids of the jobs that depend on one."""
        return list(self._dependents.get(job_id, ()))

    def outcome(self, job_id: str) -> DependencyOutcome | None:
        """Return how a job ended, if that was learned."""
        return self._outcomes.get(job_id)

    def learn(self, outcome: DependencyOutcome) -> None:
        """Remember how a job ended, while others depend on it."""
        if outcome.job_id in self._dependents:
            self._outcomes[outcome.job_id] = outcome

    def learn_from_girder(self, asked: Iterable[str], jobs: Mapping[str, Any]) -> list[str]:
        """Take in Girder's answer, job documents by id; return the ids of which the end is known.

        A job that was asked for and is not in the answer is gone.
        """
        ended = []
        for job_id in asked:
            job = jobs.get(job_id)
            status = None if job is None else JobStatus(job["status"])
            if status is None or status in FINAL:
                title = str(job.get("title") or "") if job is not None else ""
                self.learn(DependencyOutcome(job_id, status, title))
                ended.append(job_id)
        return ended


class DependencyGate:
    """Lets jobs start when the values that they need are there.

    Parameters
    ----------
    hands
        The jobs in hand, by id.
    needs
        Who depends on whom.
    kept
        The values on the cluster.
    submit
        Has jobs run. It is given them, and by job id the keys of values on the cluster, by
        the ids of the jobs that made them.
    refuse
        Ends a job that cannot run, with a reason.
    ask
        Called when Girder is to be asked for the jobs of :meth:`unknown`.
    """

    def __init__(
        self,
        jobs: Mapping[str, JobState],
        needs: DependencyGraph,
        kept: RetainedResults,
        submit: Submit,
        refuse: Callable[[JobState, str], None],
        ask: Callable[[], None],
    ) -> None:
        self._jobs = jobs
        self._graph = needs
        self._kept = kept
        self._submit = submit
        self._refuse = refuse
        self._ask = ask
        self._news: deque[str] = deque()
        self._telling = False

    def start(self, jobs: Sequence[JobState]) -> None:
        """Submit those jobs whose inputs are there; park the others, or end them."""
        ready: list[JobSpec] = []
        values: dict[str, Mapping[str, str]] = {}
        unknown = False
        for job in jobs:
            states = {i: self._state(i) for i in job.spec.dependencies or ()}
            bad = [s for s in states.values() if isinstance(s, DependencyOutcome) and not s.good]
            job.blocked = not bad and None in states.values()
            if bad:
                self._refuse(job, bad[0].complaint())
            elif job.blocked:
                unknown |= any(s is None and i not in self._jobs for i, s in states.items())
            else:
                ready.append(job.spec)
                keys = {i: s for i, s in states.items() if isinstance(s, str)}
                if keys:
                    values[job.spec.id] = keys
        if ready:
            self._submit(ready, values)
        if unknown:
            self._ask()

    def _state(self, job_id: str) -> str | DependencyOutcome | None:
        """Return the key of a value, or else how its job ended, or None while that is open."""
        job = self._jobs.get(job_id)
        if job is not None and job.end_reported and job.status != JobStatus.SUCCESS:
            return DependencyOutcome(job_id, job.status, job.spec.title)
        key = self._kept.key(job_id)
        if key is not None or job is not None:
            # Without its key, the value can be had when Girder has acknowledged it.
            return key
        return self._graph.outcome(job_id)

    def blocked(self) -> Iterator[tuple[JobState, str]]:
        """Yield the jobs that wait for inputs, each with why."""
        for job_id in self._graph.all():
            job = self._jobs.get(job_id)
            if job is not None and job.blocked:
                yield job, self._why(job.spec.dependencies or ())

    def _why(self, inputs: Sequence[str]) -> str:
        if len(inputs) > 1:
            return f"it needs the values of {len(inputs):,} other jobs, which have not all ended"
        (job_id,) = inputs
        known = self._jobs.get(job_id)
        title = f" ('{known.spec.title}')" if known is not None and known.spec.title else ""
        return f"it needs the value of job {job_id}{title}, which has not ended"

    def unknown(self) -> list[str]:
        """Return the ids of jobs that others wait for and of which nothing is known here."""
        return [job_id for job_id in self._graph.inputs() if self._is_unknown(job_id)]

    def _is_unknown(self, job_id: str) -> bool:
        return job_id not in self._jobs and self._state(job_id) is None

    def learn(self, asked: Iterable[str], jobs: Mapping[str, Any]) -> None:
        """Take in what Girder says of jobs that others wait for, documents by id."""
        still = [job_id for job_id in asked if self._is_unknown(job_id)]
        for job_id in self._graph.learn_from_girder(still, jobs):
            self.tell(job_id)

    def tell(self, job_id: str) -> None:
        """Look again at the jobs that wait for one. Those that end have dependents in turn."""
        self._news.append(job_id)
        if self._telling:
            return
        self._telling = True
        try:
            while self._news:
                ids = self._graph.dependents(self._news.popleft())
                waiting = [self._jobs[i] for i in ids if i in self._jobs]
                self.start([job for job in waiting if job.blocked])
        finally:
            self._telling = False
