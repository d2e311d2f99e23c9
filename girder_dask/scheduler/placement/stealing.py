"""Stealing of jobs that wait behind long ones while another worker has a free thread.

Dask steals tasks from busy workers by how long it expects them to take, which is as long as tasks
of the same name took before. It steals none that take less than a twentieth of a second on average
(``distributed.stealing``). So a job of a task that is usually quick would wait for one that is
not, for as long as that takes. Jobs that have waited for a moment are moved here by Dask's own
procedure: their worker is asked, and gives up only what it has not started.
"""

from __future__ import annotations

import itertools
from typing import Any

from distributed import Scheduler
from distributed.scheduler import TaskState, WorkerState

from girder_dask.scheduler.job_state import JobTable

__all__ = ["STEAL_INTERVAL_S", "JobStealing"]

#: Seconds between calls of :meth:`JobStealing.steal`. A job that waits at two calls is moved.
STEAL_INTERVAL_S = 1.0
# How many jobs of a worker are considered: it may have thousands.
_MAX_JOBS_PER_WORKER = 100
# The rounding error of sums of resources, such as 0.1.
_ROUNDING_ERROR = 1e-9


class JobStealing:
    """Stealing of jobs for workers with free threads.

    Parameters
    ----------
    scheduler
        Dask's scheduler.
    jobs
        The table of jobs.
    """

    def __init__(self, scheduler: Scheduler, jobs: JobTable) -> None:
        self._scheduler = scheduler
        self._jobs = jobs
        self._waiting: set[TaskState] = set()

    def steal(self) -> None:
        """Move jobs that have waited since the last call."""
        before, self._waiting = self._waiting, set()
        stealing: Any = self._scheduler.extensions.get("stealing")
        if stealing is None:
            return

        def free_threads(ws: WorkerState) -> int:
            """Return how many threads are free; less than 0 if tasks wait for one."""
            coming: int = stealing.in_flight_tasks.get(ws, 0)
            return ws.nthreads - (len(ws.processing) - len(ws.long_running) + coming)

        free = [_Free(ws, n) for ws in self._scheduler.running if (n := free_threads(ws)) > 0]
        if not free:
            return
        for busy in list(self._scheduler.workers.values()):
            if free_threads(busy) >= 0 and not _Free(busy, 0).is_short:
                continue
            waiting = (ts for ts in busy.processing if self._jobs.is_queued(str(ts.key)))
            for ts in itertools.islice(waiting, _MAX_JOBS_PER_WORKER):
                thief = next((f for f in free if f.can_take(ts) and f.worker is not busy), None)
                if thief is None or ts in stealing.in_flight:
                    continue
                self._waiting.add(ts)
                if ts in before:
                    stealing.move_task_request(ts, busy, thief.worker)
                    thief.add(ts)


class _Free:
    """The free threads and resources of a worker.

    Dask's own ``used_resources`` do not change when a task is moved.
    """

    def __init__(self, worker: WorkerState, threads: int) -> None:
        self.worker = worker
        self.is_short = False  # whether its tasks need more of a resource than it has
        self._threads = threads
        self._resources = dict(worker.resources)
        if self._resources:
            for ts in worker.processing:
                self._use(ts)
                if self.is_short:
                    return  # thousands may be waiting

    def _use(self, ts: TaskState) -> None:
        for name, amount in (ts.resource_restrictions or {}).items():
            self._resources[name] = self._resources.get(name, 0) - amount
            self.is_short |= self._resources[name] < -_ROUNDING_ERROR

    def can_take(self, ts: TaskState) -> bool:
        """Return True if a task could start at once."""
        if self._threads < 1 or ts.host_restrictions:
            return False
        if ts.worker_restrictions and self.worker.address not in ts.worker_restrictions:
            return False
        asked = (ts.resource_restrictions or {}).items()
        return all(self._resources.get(name, 0) + _ROUNDING_ERROR >= n for name, n in asked)

    def add(self, ts: TaskState) -> None:
        """Subtract the thread and resources of a task that is about to arrive."""
        self._threads -= 1
        self._use(ts)
