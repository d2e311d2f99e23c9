"""Reconciles the jobs that were submitted to Dask with the tasks that Dask has.

Nothing tells the scheduler that a job was lost on the way to Dask, for example when a connection
of its own broke. The job would stay QUEUED for ever. Submitting it again is harmless if it is
still on its way, since Dask takes a key once.
"""

from __future__ import annotations

import logging

from girder_dask.scheduler.cluster import Cluster
from girder_dask.scheduler.job_state import JobTable
from girder_dask.scheduler.transitions import JobTransitions

__all__ = ["DaskReconciler"]

logger = logging.getLogger(__name__)


class DaskReconciler:
    """Submits jobs again that Dask did not have at two checks in a row.

    Parameters
    ----------
    jobs
        The table of jobs.
    transitions
        Starts and ends jobs.
    cluster
        Dask.
    """

    def __init__(self, jobs: JobTable, transitions: JobTransitions, cluster: Cluster) -> None:
        self._jobs = jobs
        self._transitions = transitions
        self._cluster = cluster
        self._missing_before: set[str] = set()

    def reconcile(self) -> None:
        """Check all jobs. Call it at long intervals: thousands of jobs may be on their way."""
        missing = {
            job.spec.key: job
            for job in self._jobs
            if job.is_submitted and not self._cluster.has(job.spec.key)
        }
        lost = [job for key, job in missing.items() if key in self._missing_before]
        self._missing_before = set(missing)
        if lost:
            logger.warning("Dask does not have %d jobs; they are submitted again", len(lost))
            self._transitions.start(lost)
