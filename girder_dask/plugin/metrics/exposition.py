"""The metrics of this Girder, from the sums and counts in its database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from girder_dask.jobs import FINAL
from girder_dask.metrics import families
from girder_dask.plugin.metrics import counter_store, queue_counts
from girder_dask.plugin.metrics.counts import Counts
from girder_dask.plugin.metrics.flusher import Flusher
from girder_dask.plugin.metrics.queue_counts import QueueCount
from girder_dask.plugin.metrics.task_labels import OTHER

__all__ = ["Readings", "collect", "read"]

_PREFIX = "girder_dask"

# Counters by the names under which they are counted: their names, texts and labels.
_COUNTERS = {
    "created": ("jobs_created", "Jobs that were recorded.", ("task",)),
    "ended": ("jobs_ended", "Jobs that have ended, by their last state.", ("task", "state")),
    "retries": ("job_retries", "Further attempts of jobs, after the first.", ("task",)),
    "log_bytes": ("log_bytes", "Bytes of output that were added to logs.", ("task",)),
}
_EVENTS = {
    "link_failures": ("link_failures", "Calls of the scheduler that failed."),
    "notification_failures": ("notification_failures", "Requests to Redis that failed."),
    "dropped_notifications": ("dropped_notifications", "Batches of notifications that were lost."),
}
_HISTOGRAMS = {
    "queue": ("job_queue_seconds", "Seconds from QUEUED until an attempt of a job began to run."),
    "run": ("job_run_seconds", "Seconds from the begin of the last attempt of a job to its end."),
}
_GAUGES = {
    "link_unreachable": (
        "link_unreachable_processes",
        "Processes of this Girder that do not reach the scheduler.",
    ),
    "link_waiting": ("link_waiting_jobs", "New jobs that are not sent to the scheduler yet."),
    "notification_bytes": ("notification_bytes", "Bytes of notifications that wait for Redis."),
}


@dataclass(frozen=True)
class Readings:
    """What one scrape has read."""

    sums: Counts
    queue: QueueCount
    oldest_s: Mapping[str, float]
    processes: int
    gauges: Mapping[str, float]
    quarantined: int
    lease_age_s: float | None


def read(flusher: Flusher, quarantined: int, lease_age_s: float | None, now: datetime) -> Readings:
    """Read all metrics from the database.

    Parameters
    ----------
    flusher
        What stores the counts of this process. They are stored first.
    quarantined
        The jobs that went into quarantine in the last day.
    lease_age_s
        Seconds since the scheduler that leads has renewed its lease, None if none leads.
    now
        The present time.
    """
    flusher.flush()
    sums = counter_store.load()
    for _, task, *_more in [*sums.counters, *sums.histograms]:
        flusher.labels.add_known(task)
    flusher.want_count()
    queue = queue_counts.load()
    oldest = queue_counts.oldest_waiting(flusher.open_index, now)
    processes, gauges = counter_store.load_gauges(now)
    return Readings(sums, queue, oldest, processes, gauges, quarantined, lease_age_s)


def collect(readings: Readings) -> Iterator[Any]:
    """Yield all families of metrics."""
    yield from families.process_families(_PREFIX)
    yield from _of_queue(readings)
    sums = readings.sums
    for kind, (name, text, labels) in _COUNTERS.items():
        # From zero on, since Prometheus takes the first value of a series for no increase.
        samples = dict.fromkeys(_labels(kind, sums), 0)
        samples |= {key[1:]: number for key, number in sums.counters.items() if key[0] == kind}
        yield families.counter(f"{_PREFIX}_{name}", text, samples, labels)
    for kind, (name, text) in _HISTOGRAMS.items():
        times = {key[1:]: each for key, each in sums.histograms.items() if key[0] == kind}
        yield families.histogram(f"{_PREFIX}_{name}", text, times, ["task"])
    lag = next((each for (kind, _), each in sums.histograms.items() if kind == "update_lag"), None)
    yield families.histogram(
        f"{_PREFIX}_update_lag_seconds",
        "Seconds from a change of state, by the clock of its host, until Girder recorded it.",
        {(): lag} if lag is not None else {},
    )
    for kind, (name, text) in _EVENTS.items():
        yield families.counter(f"{_PREFIX}_{name}", text, {(): sums.events[kind]})
    for kind, (name, text) in _GAUGES.items():
        yield families.gauge(f"{_PREFIX}_{name}", text, {(): readings.gauges.get(kind, 0)})


def _labels(kind: str, sums: Counts) -> Iterator[tuple[str, ...]]:
    """Yield the labels that a counter has, or will have once it has counted something."""
    for task in sorted({OTHER, *(key[1] for key in sums.counters)}):
        if kind == "ended":
            yield from ((task, status.name) for status in FINAL)
        else:
            yield (task,)


def _of_queue(readings: Readings) -> Iterator[Any]:
    queue = readings.queue
    yield families.gauge(
        f"{_PREFIX}_jobs",
        "Unfinished jobs when they were last counted, by state, task and cluster.",
        queue.jobs,
        ["state", "task", "cluster"],
    )
    if queue.counted is not None:
        yield families.gauge(
            f"{_PREFIX}_jobs_counted_timestamp_seconds",
            "When the unfinished jobs were last counted.",
            {(): queue.counted.timestamp()},
        )
    yield families.gauge(
        f"{_PREFIX}_oldest_waiting_job_seconds",
        "Seconds since the oldest queued job was created, by the cluster that has it.",
        {(cluster,): age_s for cluster, age_s in readings.oldest_s.items()},
        ["cluster"],
    )
    age_s = readings.lease_age_s
    yield families.gauge(
        f"{_PREFIX}_leading_schedulers",
        "1 if a scheduler has the lease, 0 if none has.",
        {("default",): float(age_s is not None)},
        ["cluster"],
    )
    yield families.gauge(
        f"{_PREFIX}_lease_age_seconds",
        "Seconds since the scheduler that leads has renewed its lease.",
        {} if age_s is None else {("default",): age_s},
        ["cluster"],
    )
    yield families.gauge(
        f"{_PREFIX}_quarantined_jobs",
        "Jobs whose malformed documents were set aside in the last day.",
        {(): readings.quarantined},
    )
    yield families.gauge(
        f"{_PREFIX}_processes",
        "Processes of Girder that have stored metrics lately.",
        {(): readings.processes},
    )
