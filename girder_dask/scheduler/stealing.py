"""Jobs that wait behind long ones on a busy worker while another worker has a free thread.

Dask takes tasks from busy workers by how long it expects them to take, which is as long as tasks
of the same name took before. Of those that take a twentieth of a second on average it takes none
(``distributed.stealing``). So a job of a task that is quick as a rule would wait for one that is
not, for as long as that takes. What has waited for a moment is moved here, by Dask's own
procedure: its worker is asked, and gives away only what it has not begun.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any

from distributed import Scheduler
from distributed.scheduler import TaskState, WorkerState

from girder_dask.utils.background import Guard

__all__ = ["JobStealing"]

logger = logging.getLogger(__name__)

# Seconds between two looks. A job is moved that has waited at both.
_PAUSE = 1.0
# How many jobs of a worker are looked at: it may have thousands.
_MOST = 100
# By how much sums of resources, such as 0.1, may be off.
_ROUNDING = 1e-9


class JobStealing:
    """Moves jobs to workers with free threads. To be used on the scheduler's event loop.

    Parameters
    ----------
    scheduler
        Dask's scheduler.
    waits
        Says whether a key is that of a job which has not begun, as far as is known.
    """

    def __init__(self, scheduler: Scheduler, waits: Callable[[str], bool]) -> None:
        self._scheduler = scheduler
        self._waits = waits
        self._waiting: set[TaskState] = set()

    async def run(self) -> None:
        """Look until cancelled."""
        guard = Guard(logger, "The look for jobs that could run elsewhere")
        while True:
            await asyncio.sleep(max(_PAUSE, guard.delay_s))
            with guard:
                self.look()

    def look(self) -> None:
        """Move jobs that have waited since the last look."""
        before, self._waiting = self._waiting, set()
        stealing: Any = self._scheduler.extensions.get("stealing")
        if stealing is None:
            return

        def spare(ws: WorkerState) -> int:
            """Return how many threads are free; less than 0 if tasks wait for one."""
            coming: int = stealing.in_flight_tasks.get(ws, 0)
            return ws.nthreads - (len(ws.processing) - len(ws.long_running) + coming)

        free = [_Free(ws, n) for ws in self._scheduler.running if (n := spare(ws)) > 0]
        if not free:
            return
        for busy in list(self._scheduler.workers.values()):
            if spare(busy) >= 0 and not _Free(busy, 0).is_short:
                continue
            waiting = (ts for ts in busy.processing if self._waits(str(ts.key)))
            for ts in itertools.islice(waiting, _MOST):
                thief = next((f for f in free if f.takes(ts) and f.worker is not busy), None)
                if thief is None or ts in stealing.in_flight:
                    continue
                self._waiting.add(ts)
                if ts in before:
                    stealing.move_task_request(ts, busy, thief.worker)
                    thief.add(ts)


class _Free:
    """What is free on a worker.

    What Dask itself keeps of resources, ``used_resources``, is not changed when it moves a task.
    """

    def __init__(self, worker: WorkerState, threads: int) -> None:
        self.worker = worker
        self.is_short = False  # whether tasks wait for a resource
        self._threads = threads
        self._resources = dict(worker.resources)
        if self._resources:
            for ts in worker.processing:
                self._use(ts)
                if self.is_short:
                    return  # there may be thousands that wait

    def _use(self, ts: TaskState) -> None:
        for name, amount in (ts.resource_restrictions or {}).items():
            self._resources[name] = self._resources.get(name, 0) - amount
            self.is_short |= self._resources[name] < -_ROUNDING

    def takes(self, ts: TaskState) -> bool:
        """Say whether a task could begin at once."""
        if self._threads < 1 or ts.worker_restrictions or ts.host_restrictions:
            return False
        asked = (ts.resource_restrictions or {}).items()
        return all(self._resources.get(name, 0) + _ROUNDING >= n for name, n in asked)

    def add(self, ts: TaskState) -> None:
        """Count a task that is to come."""
        self._threads -= 1
        self._use(ts)
