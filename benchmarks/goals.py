"""Goals of the measurements. A missed goal is reported and does not fail the run."""

from __future__ import annotations

import operator
from dataclasses import dataclass

__all__ = ["GOALS", "SCALE_GOALS", "Goal"]

_RELATIONS = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Goal:
    """A bound for a ratio.

    Attributes
    ----------
    case
        What is measured, for the table.
    relation
        ``'>='`` or ``'<='``.
    bound
        The bound.
    condition
        What else must hold, empty if nothing. The case reports when it does not.
    """

    case: str
    relation: str
    bound: float
    condition: str = ""

    def __str__(self) -> str:
        text = f"{self.relation} {self.bound:g}"
        return f"{text}, {self.condition}" if self.condition else text

    def met(self, measured: float) -> bool:
        """Return True if a measured ratio is within the bound."""
        return bool(_RELATIONS[self.relation](measured, self.bound))


#: The goals by the names of the ratios.
GOALS = {
    "map_vs_girder_worker": Goal(
        "1,000 no-op jobs: throughput of `task.map`, relative to a `delay()` loop on girder_worker",
        ">=",
        8,
    ),
    "map_vs_dask": Goal("the same, relative to `Client.map` of Dask without Girder", ">=", 0.6),
    "delay_vs_girder_worker": Goal(
        "500 no-op jobs: throughput of a `delay()` loop in one request, relative to girder_worker",
        ">=",
        5,
    ),
    "submit_vs_girder_worker": Goal(
        "submissions per second without a running worker, relative to girder_worker", ">=", 4
    ),
    "latency_vs_girder_worker": Goal(
        "median latency of one job on an idle system, `delay()` to SUCCESS, relative to "
        "girder_worker",
        "<=",
        1.0,
    ),
    "takeover_delay_vs_rabbitmq": Goal(
        "200 no-op jobs of a task of girder_worker, run by girder_dask: throughput of a `delay()` "
        "loop in one request, relative to the same on RabbitMQ",
        ">=",
        1.0,
    ),
    "takeover_latency_vs_rabbitmq": Goal(
        "median latency of one such job on an idle system, relative to the same on RabbitMQ",
        "<=",
        1.0,
    ),
    "beside_girder_worker": Goal(
        "1,000 no-op jobs: throughput of `task.map` in a Girder that has girder_worker's plugin as "
        "well, relative to one without",
        ">=",
        0.95,
    ),
    "http_per_job": Goal("requests to Girder per job, for a map of 1,000 jobs", "<=", 0.05),
    "log_lines_vs_girder_worker": Goal(
        "200,000 lines printed by a task: lines per second until all are in Girder, relative to "
        "girder_worker",
        ">=",
        5,
        "none lost",
    ),
    "files_vs_girder_worker": Goal(
        "40 jobs that read the same file of 100 MB (`GirderFileId`): throughput, relative to "
        "girder_worker",
        ">=",
        10,
    ),
    "upload_vs_girder_worker": Goal(
        "20 jobs that each upload 20 MB (`GirderUploadToFolder`): throughput, relative to "
        "girder_worker",
        ">=",
        1,
    ),
    "queue_growth": Goal("throughput with 20,000 queued jobs, relative to 500", ">=", 0.8),
    "scheduler_overhead": Goal(
        "CPU time of the scheduler per job, relative to a scheduler without our hooks", "<=", 1.5
    ),
    "workers_1000": Goal(
        "CPU time of the scheduler per job with 1,000 simulated workers, relative to 10",
        "<=",
        1.3,
    ),
    "memory_per_job": Goal(
        "memory kept per finished job, in bytes (the largest of scheduler, workers and Girder)",
        "<=",
        500,
    ),
}

#: The goals of ``make bench-scale``.
SCALE_GOALS = {
    "queue_million": Goal(
        "throughput with a million queued jobs, relative to 500 queued jobs", ">=", 0.8
    ),
    "memory_million": Goal("most memory of the scheduler and of Girder, in MiB", "<=", 400),
    "restart_million": Goal(
        "seconds from the start of a new scheduler until its first job has ended", "<=", 5
    ),
    "cancel_million_stops": Goal(
        "seconds from the cancel of the map until nothing starts any more", "<=", 2
    ),
    "cancel_million": Goal("seconds until all jobs of the map are CANCELED", "<=", 300),
}
