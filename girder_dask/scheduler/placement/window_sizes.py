"""Sizes of the windows: how many jobs of each kind Dask has at once."""

from __future__ import annotations

import math

from distributed import Scheduler

from girder_dask.scheduler.window import Kind

__all__ = ["WindowSizes"]

# The rounding error of quotients of resources, such as 0.3 / 0.1.
_ROUNDING_ERROR = 1e-9


class WindowSizes:
    """The sizes of the windows of all kinds, with the workers as they were at the last refresh.

    Parameters
    ----------
    scheduler
        Dask's scheduler.
    jobs_per_thread
        How many jobs Dask has at once for each thread of its workers; None for no limit.
    """

    def __init__(self, scheduler: Scheduler, jobs_per_thread: float | None) -> None:
        self._scheduler = scheduler
        self._jobs_per_thread = math.inf if jobs_per_thread is None else jobs_per_thread
        self._slots: dict[Kind, float] = {}
        self._long_running = 0

    def refresh(self) -> None:
        """Adapt the sizes to the workers as they are now.

        A task that has left its thread (``distributed.secede``) does not count, since it may wait
        for jobs that it has started.
        """
        self._slots.clear()
        self._long_running = sum(len(ws.long_running) for ws in self._scheduler.workers.values())

    def size(self, kind: Kind) -> float:
        """Return how many jobs of a kind Dask has at once.

        Without a worker that can run them it has one, by which an adaptive cluster gets a worker.
        """
        if math.isinf(self._jobs_per_thread):
            return math.inf
        if not kind:
            size = self._jobs_per_thread * self._scheduler.total_nthreads
        else:
            size = self._slots_of(kind)
        return max(size, 1) + self._long_running

    def _slots_of(self, kind: Kind) -> float:
        slots = self._slots.get(kind)
        if slots is None:
            slots = self._slots[kind] = self._count_slots(kind)
        return slots

    def _count_slots(self, kind: Kind) -> float:
        """Return how many jobs of a kind the resources of all workers allow at once."""
        slots = 0.0
        for ws in self._scheduler.workers.values():
            fitting = min(ws.resources.get(name, 0.0) / amount for name, amount in kind)
            slots += min(int(fitting + _ROUNDING_ERROR), self._jobs_per_thread * ws.nthreads)
        return slots
