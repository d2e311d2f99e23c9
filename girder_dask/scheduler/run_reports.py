"""Reports of runs about their own ends, awaited after Dask has reported the task finished.

The report travels beside Dask's message, so it may arrive a moment later. Most arrive within a
tenth of a second. If a report is lost, for example with its worker, Dask's account of the end is
used instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from girder_dask.scheduler.cluster_interface import Cluster
from girder_dask.scheduler.event_recorder import Recorder
from girder_dask.scheduler.job_state import JobTable
from girder_dask.utils.background import Guard

__all__ = ["CHECK_INTERVAL_S", "RunReports"]

logger = logging.getLogger(__name__)

#: Seconds between calls of :meth:`RunReports.check`.
CHECK_INTERVAL_S = 0.5
# How long the report of a run on a connected worker may take.
_REPORT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class _Awaited:
    key: str
    worker: str | None
    since: float
    if_lost: Callable[[], None]


class RunReports:
    """The awaited reports of runs that have finished.

    Parameters
    ----------
    jobs
        The table of jobs.
    cluster
        The Dask cluster.
    recorder
        Holds back workers' events while its buffer is full. No report counts as late then.
    """

    def __init__(self, jobs: JobTable, cluster: Cluster, recorder: Recorder) -> None:
        self._jobs = jobs
        self._cluster = cluster
        self._recorder = recorder
        self._full_at = float("-inf")
        self._awaited: list[_Awaited] = []
        self._guard = Guard(logger, "The check for lost reports of runs")

    def wait_for(self, key: str, worker: str | None, if_lost: Callable[[], None]) -> None:
        """Wait for the report of a run that has finished on a worker.

        Parameters
        ----------
        if_lost
            Called if the report cannot arrive any longer.
        """
        if self._jobs.is_open(key):
            self._awaited.append(_Awaited(key, worker, self._cluster.time(), if_lost))

    def check(self) -> None:
        """Handle the ends of runs whose reports are lost."""
        if not self._awaited:
            return
        with self._guard:
            if self._recorder.is_full:
                self._full_at = self._cluster.time()
        awaited, self._awaited = self._awaited, []
        for report in awaited:
            is_lost = False
            with self._guard:  # for each, so that the others are still checked
                if not self._jobs.is_open(report.key):
                    continue
                is_lost = self._is_lost(report)
            if is_lost:
                with Guard(logger, f"Handling the end of {report.key} that Dask reported"):
                    report.if_lost()
            else:
                self._awaited.append(report)

    def _is_lost(self, report: _Awaited) -> bool:
        now = self._cluster.time()
        if report.worker is not None and not self._cluster.has_worker(report.worker):
            return now - report.since >= CHECK_INTERVAL_S
        return now - max(report.since, self._full_at) >= _REPORT_TIMEOUT_S
