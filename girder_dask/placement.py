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
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from distributed import Scheduler
from distributed.scheduler import TaskState, WorkerState

__all__ = ["Placement"]

logger = logging.getLogger(__name__)

# Seconds between two looks. A job is moved that has waited at both.
_PAUSE = 1.0
# How many jobs of a worker are looked at: it may have thousands.
_MOST = 100


class Placement:
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
        while True:
            await asyncio.sleep(_PAUSE)
            try:
                self.look()
            except Exception:
                # Else jobs would never be moved again. Dask has its own way, too.
                logger.exception("It could not be seen which jobs wait for no reason")

    def look(self) -> None:
        """Move jobs that have waited since the last look."""
        before, self._waiting = self._waiting, set()
        stealing: Any = self._scheduler.extensions.get("stealing")
        free = {ws: _free(ws) for ws in self._scheduler.running if _free(ws) > 0}
        if stealing is None or not free:
            return
        used = {ws: _used(ws) for ws in self._scheduler.workers.values()}
        for busy in [ws for ws, these in used.items() if _free(ws) < 0 or _is_short(ws, these)]:
            waiting = (ts for ts in busy.processing if self._waits(str(ts.key)))
            for ts in itertools.islice(waiting, _MOST):
                thief = self._thief(ts, free, used)
                if thief is None or thief is busy:
                    continue
                self._waiting.add(ts)
                if ts in before and stealing.move_task_request(ts, busy, thief) != "in-flight":
                    free[thief] -= 1
                    used[thief].update(ts.resource_restrictions or {})

    def _thief(
        self,
        ts: TaskState,
        free: Mapping[WorkerState, int],
        used: Mapping[WorkerState, Counter[str]],
    ) -> WorkerState | None:
        allowed = self._scheduler.valid_workers(ts)
        for ws, threads in free.items():
            if threads > 0 and (allowed is None or ws in allowed) and _has(ws, used[ws], ts):
                return ws
        return None


def _free(ws: WorkerState) -> int:
    """Return how many threads of a worker are free; less than 0 if tasks wait there."""
    return ws.nthreads - (len(ws.processing) - len(ws.long_running))


def _used(ws: WorkerState) -> Counter[str]:
    """Return what the tasks on a worker ask for together.

    What Dask itself keeps of it, ``used_resources``, is not changed when it moves a task.
    """
    used: Counter[str] = Counter()
    if ws.resources:
        for ts in ws.processing:
            used.update(ts.resource_restrictions or {})
    return used


def _is_short(ws: WorkerState, used: Counter[str]) -> bool:
    """Say whether tasks on a worker wait for what others there use."""
    return any(amount > ws.resources.get(name, 0) for name, amount in used.items())


def _has(ws: WorkerState, used: Counter[str], ts: TaskState) -> bool:
    """Say whether what a task asks for is not in use on a worker."""
    asked = ts.resource_restrictions or {}
    return all(used[name] + n <= ws.resources.get(name, 0) for name, n in asked.items())
