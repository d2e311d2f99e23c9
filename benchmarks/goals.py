"""What the measurements are held against. A goal that is missed is said, and is no failure."""

from __future__ import annotations

import operator
from dataclasses import dataclass

__all__ = ["GOALS", "Goal"]

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
        What must hold besides, empty if nothing. The case says so if it does not.
    """

    case: str
    relation: str
    bound: float
    condition: str = ""

    def __str__(self) -> str:
        text = f"{self.relation} {self.bound:g}"
        return f"{text}, {self.condition}" if self.condition else text

    def met(self, measured: float) -> bool:
        """Say whether what was measured is within the bound."""
        return bool(_RELATIONS[self.relation](measured, self.bound))


#: The goals by the names of the ratios.
GOALS = {
    "map_vs_girder_worker": Goal(
        "1,000 jobs that do nothing: `task.map` over a loop of `delay()` on girder_worker",
        ">=",
        8,
    ),
    "map_vs_dask": Goal("the same over `Client.map` of Dask, without Girder", ">=", 0.6),
    "delay_vs_girder_worker": Goal(
        "500 jobs, a loop of `delay()` in one request, over the same on girder_worker", ">=", 5
    ),
    "submit_vs_girder_worker": Goal(
        "submissions a second with no worker running, over girder_worker's", ">=", 4
    ),
    "latency_vs_girder_worker": Goal(
        "one job on an idle system, `delay()` to SUCCESS, median, over girder_worker's",
        "<=",
        1.0,
    ),
    "http_per_job": Goal("requests to Girder for each of the 1,000 jobs of a map", "<=", 0.05),
    "log_lines_vs_girder_worker": Goal(
        "200,000 lines printed by a task, until all are in Girder, over girder_worker's rate",
        ">=",
        5,
        "none lost",
    ),
    "files_vs_girder_worker": Goal(
        "40 jobs over the same file of 100 MB (`GirderFileId`), over girder_worker's rate",
        ">=",
        10,
    ),
    "upload_vs_girder_worker": Goal(
        "20 jobs that each push 20 MB (`GirderUploadToFolder`), over girder_worker's rate", ">=", 1
    ),
    "queue_growth": Goal("jobs a second with 20,000 queued, over those with 500", ">=", 0.8),
    "scheduler_overhead": Goal(
        "CPU seconds of the scheduler for a job, over those without our hooks", "<=", 1.5
    ),
    "memory_per_job": Goal(
        "bytes for each finished job that scheduler, workers or Girder keep (the most of them)",
        "<=",
        500,
    ),
}
