"""Counts of what happens to jobs in this process, in memory until they are flushed.

Each job passes through here a few times, so this costs a few look-ups and additions under a lock.
Names of tasks become labels later.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from girder_dask.jobs import FINAL, JobStatus
from girder_dask.metrics.histogram import LAG_BOUNDS_S, QUEUE_BOUNDS_S, RUN_BOUNDS_S, Histogram
from girder_dask.utils.forks import reset_after_fork

if TYPE_CHECKING:
    from girder_dask.plugin.store.job_change import JobChange

__all__ = ["ANY_TASK", "BOUNDS_S", "Counts", "JobCounts", "counts"]

logger = logging.getLogger(__name__)

#: The upper bounds of the buckets of each histogram.
BOUNDS_S = {"queue": QUEUE_BOUNDS_S, "run": RUN_BOUNDS_S, "update_lag": LAG_BOUNDS_S}

#: The task of times that are not told apart by task.
ANY_TASK = ""

_STARTED = frozenset(
    map(int, (JobStatus.FETCHING_INPUT, JobStatus.RUNNING, JobStatus.PUSHING_OUTPUT))
)
_WAITING = frozenset(map(int, (JobStatus.INACTIVE, JobStatus.QUEUED)))


@dataclass
class Counts:
    """Counts by the name of the metric, the name of the task, and further labels.

    ``events`` belong to no task and have a name alone.
    """

    counters: Counter[tuple[str, ...]] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    histograms: dict[tuple[str, ...], Histogram] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.counters or self.events or self.histograms)

    def observe(self, kind: str, task: str, seconds: float) -> None:
        """Count a time."""
        histogram = self.histograms.get((kind, task))
        if histogram is None:
            histogram = self.histograms[kind, task] = Histogram(BOUNDS_S[kind])
        histogram.observe(seconds)

    def add(self, other: Counts) -> None:
        """Add other counts."""
        self.counters.update(other.counters)
        self.events.update(other.events)
        for key, each in other.histograms.items():
            own = self.histograms.setdefault(key, Histogram(each.bounds))
            own.counts = [a + b for a, b in zip(own.counts, each.counts, strict=True)]
            own.sum += each.sum


class JobCounts:
    """The counts of this process since they were last taken. Thread-safe."""

    def __init__(self) -> None:
        self._reset()
        reset_after_fork(self, JobCounts._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._counts = Counts()

    def created(self, tasks: Iterable[str]) -> None:
        """Count new jobs, given the names of their tasks."""
        with self._lock:
            for task in tasks:
                self._counts.counters["created", task] += 1

    def ended(self, tasks: Iterable[str], status: JobStatus) -> None:
        """Count jobs that have ended without a run, given the names of their tasks."""
        with self._lock:
            for task in tasks:
                self._counts.counters["ended", task, status.name] += 1

    def changed(self, changes: Iterable[JobChange]) -> None:
        """Count changes of jobs that were written. Never raises: the jobs are stored."""
        now = datetime.now(timezone.utc)
        with self._lock:
            for change in changes:
                try:
                    self._count(change, now)
                except Exception:
                    logger.exception("A change of job %s is not counted", change.id)

    def _count(self, change: JobChange, now: datetime) -> None:
        counts, task = self._counts, str(change.dask.get("task"))
        if change.new_attempts:
            counts.counters["retries", task] += change.new_attempts
        if change.log.nbytes:
            counts.counters["log_bytes", task] += change.log.nbytes
        if not change.steps:
            return
        stamps = change.job["timestamps"]
        for status, number in change.steps:
            _count_step(counts, task, status, stamps, number)
        counts.observe("update_lag", ANY_TASK, (now - stamps[-1]["time"]).total_seconds())

    def take(self) -> Counts:
        """Return the counts, and begin anew."""
        with self._lock:
            taken, self._counts = self._counts, Counts()
        return taken

    def put_back(self, taken: Counts) -> None:
        """Add counts that could not be stored."""
        with self._lock:
            self._counts.add(taken)


def _count_step(
    counts: Counts, task: str, status: int, stamps: Sequence[dict[str, Any]], number: int
) -> None:
    """Count a state, which is the last of the first ``number`` stamps."""
    reached = stamps[number - 1]
    if status in _STARTED:
        if number > 1 and stamps[number - 2]["status"] == JobStatus.QUEUED:
            counts.observe("queue", task, _seconds(stamps[number - 2], reached))
    elif status in FINAL:
        counts.counters["ended", task, JobStatus(status).name] += 1
        began = _beginning(stamps, number - 1)
        if began is not None:
            counts.observe("run", task, _seconds(began, reached))


def _beginning(stamps: Sequence[dict[str, Any]], number: int) -> dict[str, Any] | None:
    """Return the stamp with which the last attempt began to run, None if it did not."""
    began = None
    for n in range(number - 1, -1, -1):
        status = stamps[n]["status"]
        if status in _WAITING:
            break
        if status in _STARTED:
            began = stamps[n]
    return began


def _seconds(first: dict[str, Any], last: dict[str, Any]) -> float:
    return float((last["time"] - first["time"]).total_seconds())


#: The counts of this process.
counts = JobCounts()
