"""Collector of the scheduler's metrics, registered where Dask registers its own.

Everything is counted as it happens, so that a scrape reads numbers and goes over no queue. No label
comes from a user: jobs by task are in the metrics of Girder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from girder_dask.jobs import JobStatus
from girder_dask.metrics import families
from girder_dask.scheduler.job_state import RetryCause

if TYPE_CHECKING:
    from girder_dask.http.scheduler_api import GirderRequests
    from girder_dask.scheduler.dask_cluster import DaskCluster
    from girder_dask.scheduler.event_recorder import Recorder
    from girder_dask.scheduler.job_state import JobTable
    from girder_dask.scheduler.lease import SchedulerLease

__all__ = ["MetricsCollector", "install", "remove"]

_PREFIX = "girder_dask_scheduler"

# The collector of this process.
_installed: MetricsCollector | None = None


class MetricsCollector:
    """The metrics of one scheduler.

    Parameters
    ----------
    jobs
        The table of jobs.
    cluster
        The Dask cluster, with the queue and the lost workers.
    recorder
        The buffer of updates to Girder.
    girder
        The requests to Girder.
    lease
        Whether this scheduler leads.
    others
        Functions that return further families.
    """

    def __init__(
        self,
        *,
        jobs: JobTable,
        cluster: DaskCluster,
        recorder: Recorder,
        girder: GirderRequests,
        lease: SchedulerLease,
        others: Sequence[Callable[[], Iterable[Any]]] = (),
    ) -> None:
        self._jobs = jobs
        self._cluster = cluster
        self._recorder = recorder
        self._girder = girder
        self._lease = lease
        self._others = others

    def describe(self) -> Iterable[Any]:
        """Return nothing, so that registration collects nothing."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield all families of metrics, as ``prometheus_client`` asks for them."""
        yield from families.process_families(_PREFIX)
        yield _gauge(
            "leads",
            "1 for the scheduler that leads, 0 for one that stands by.",
            {(): float(self._lease.leads is True)},
        )
        yield from self._of_jobs()
        yield from self._of_updates()
        for families_of_another in self._others:
            yield from families_of_another()

    def _of_jobs(self) -> Iterator[Any]:
        held = {(status.name,): self._jobs.counts[status] for status in JobStatus}
        yield _gauge("jobs", "Jobs that the scheduler has, by state.", held, ["state"])
        window, losses = self._cluster.window, self._cluster.losses
        places = {("scheduler",): window.waiting, ("dask",): window.given}
        yield _gauge(
            "queue_jobs",
            "Unfinished jobs that need no other any more: those that wait in the scheduler, and "
            "those that Dask has.",
            places,
            ["place"],
        )
        yield _counter(
            "retries",
            "Further attempts of jobs, by cause.",
            {(cause.value,): self._jobs.retries[cause] for cause in RetryCause},
            ["cause"],
        )
        yield _counter(
            "lost_workers", "Workers that were lost without having left.", {(): losses.lost}
        )
        yield _counter(
            "out_of_memory_workers",
            "Workers that their nannies ended for using too much memory.",
            {(): losses.out_of_memory},
        )

    def _of_updates(self) -> Iterator[Any]:
        recorder = self._recorder
        yield _gauge(
            "pending_jobs",
            "Jobs with updates that Girder has not recorded.",
            {(): recorder.waiting},
        )
        yield _gauge(
            "pending_bytes",
            "Bytes of updates that Girder has not recorded.",
            {(): recorder.pending_bytes},
        )
        yield _gauge(
            "pending_bytes_limit",
            "Bytes of updates that may wait for Girder before workers are blocked.",
            {(): recorder.buffer_bytes},
        )
        yield _gauge(
            "oldest_update_seconds",
            "For how long the oldest update has waited for Girder.",
            {(): recorder.oldest_age_s()},
        )
        yield families.histogram(
            f"{_PREFIX}_update_lag_seconds",
            "Seconds from an event of a job in the scheduler until Girder had recorded it.",
            {(): recorder.lag},
        )
        yield _counter(
            "log_characters", "Characters of output of jobs that came.", {(): recorder.log_chars}
        )
        yield _counter("requests", "Requests to Girder.", _by_name(self._girder.made), ["purpose"])
        yield _counter(
            "failed_requests",
            "Requests to Girder that failed.",
            {(purpose,): self._girder.failed[purpose] for purpose in self._girder.made},
            ["purpose"],
        )


def install(collector: MetricsCollector) -> None:
    """Add a collector to what Dask serves at ``/metrics``, in place of an earlier one.

    Without ``prometheus_client``, Dask serves no metrics, and nothing is imported.
    """
    global _installed
    if not families.is_available():
        return
    from prometheus_client import REGISTRY

    if _installed is not None:
        remove(_installed)
    REGISTRY.register(collector)
    _installed = collector


def remove(collector: MetricsCollector) -> None:
    """Take a collector out of what Dask serves, if it is there."""
    global _installed
    if _installed is collector:
        from prometheus_client import REGISTRY

        REGISTRY.unregister(collector)
        _installed = None


def _by_name(counts: Mapping[Any, int]) -> dict[tuple[str, ...], float]:
    return {(str(name),): number for name, number in counts.items()}


def _gauge(name: str, text: str, samples: Mapping[Any, float], labels: Iterable[str] = ()) -> Any:
    return families.gauge(f"{_PREFIX}_{name}", text, samples, list(labels))


def _counter(name: str, text: str, samples: Mapping[Any, float], labels: Iterable[str] = ()) -> Any:
    return families.counter(f"{_PREFIX}_{name}", text, samples, list(labels))
