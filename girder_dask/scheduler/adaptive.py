"""The number of workers that an adaptive cluster should have, with the jobs that wait counted in.

Dask derives it from the tasks that it has. It does not have the jobs that wait behind the window.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from types import SimpleNamespace
from typing import Any

from dask.utils import key_split
from distributed import Scheduler
from distributed.scheduler import TaskPrefix, TaskState, WorkerState

from girder_dask.protocol.names import GPU_RESOURCE
from girder_dask.scheduler.window import Window

__all__ = ["AdaptiveTarget"]


class AdaptiveTarget:
    """The answer to adaptive clusters, in place of ``Scheduler.adaptive_target``.

    Parameters
    ----------
    scheduler
        Dask's scheduler.
    window
        The jobs that wait.
    """

    def __init__(self, scheduler: Scheduler, window: Window) -> None:
        self._scheduler = scheduler
        self._window = window

    def install(self) -> None:
        """Answer remote calls, and those of Dask's HTTP API."""
        self._scheduler.handlers["adaptive_target"] = self.target
        self._scheduler.adaptive_target = self.target  # type: ignore[method-assign]

    def target(self, target_duration: Any = None) -> int:
        """Return the number of workers that the cluster should have, by Dask's own rules."""
        return self._target(_SchedulerView(self._scheduler, self._window), target_duration)

    def targets(self) -> dict[bool, int]:
        """Return the number of workers without a GPU, and of those with one, for their tasks alone.

        A task asks for a GPU by the resource. One that does not is counted for the workers without,
        unless a worker with a GPU has it: that one is not closed meanwhile, and no more are wanted.

        Returns
        -------
        dict
            The numbers by whether the workers offer GPUs.
        """
        return {
            has_gpu: self._target(_PoolView(self._scheduler, self._window, has_gpu))
            for has_gpu in (False, True)
        }

    def _target(self, view: Any, target_duration: Any = None) -> int:
        return type(self._scheduler).adaptive_target(view, target_duration)


class _SchedulerView:
    """A scheduler in whose queue the waiting jobs are too."""

    def __init__(self, scheduler: Scheduler, window: Window) -> None:
        self._scheduler = scheduler
        self._window = window
        self.queued = _Queue(scheduler, scheduler.queued, window.all_waiting(), window.waiting)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)


class _PoolView(_SchedulerView):
    """The workers with or without GPUs, and the tasks that wait for them."""

    def __init__(self, scheduler: Scheduler, window: Window, has_gpu: bool) -> None:
        self._scheduler = scheduler
        self._window = window
        kinds = [kind for kind in window.waiting_kinds() if _asks_for_gpu(dict(kind)) is has_gpu]
        # Dask queues no task that asks for resources.
        queued: Collection[Any] = () if has_gpu else scheduler.queued
        waiting = chain.from_iterable(map(window.waiting_keys, kinds))
        number = sum(map(window.waiting_number, kinds))
        self.queued = _Queue(scheduler, queued, waiting, number)
        self.unrunnable = {
            ts: since
            for ts, since in scheduler.unrunnable.items()
            if _asks_for_gpu(ts.resource_restrictions or {}) is has_gpu
        }
        present = {
            address: worker
            for address, worker in scheduler.workers.items()
            if _asks_for_gpu(worker.resources) is has_gpu
        }
        self.workers: dict[str, Any] = {
            address: _WorkerView(worker, has_gpu) for address, worker in present.items()
        }
        self.total_occupancy = sum(
            scheduler._get_prefix_duration(ts.prefix)  # noqa: SLF001 - as the target itself does
            for worker in self.workers.values()
            for ts in worker.processing
        )
        self._present = present

    def workers_to_close(self) -> list[str]:
        view: Any = _SchedulerView(self._scheduler, self._window)
        view.workers = self._present
        return type(self._scheduler).workers_to_close(view)


class _WorkerView:
    """A worker, of whose tasks only those that ask for a GPU count if it has one."""

    def __init__(self, worker: WorkerState, has_gpu: bool) -> None:
        self._worker = worker
        self.processing: Collection[TaskState] = worker.processing
        if has_gpu:
            self.processing = [
                ts for ts in worker.processing if _asks_for_gpu(ts.resource_restrictions or {})
            ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)


class _Queue:
    """The queued tasks of Dask, then those of waiting jobs, as far as the target looks at them."""

    def __init__(
        self, scheduler: Scheduler, queued: Collection[Any], waiting: Iterable[str], number: int
    ) -> None:
        self._scheduler = scheduler
        self._queued = queued
        self._waiting = waiting
        self._number = number

    def __len__(self) -> int:
        return len(self._queued) + self._number

    def __iter__(self) -> Iterator[Any]:
        return chain(self._queued, map(self._task, self._waiting))

    def _task(self, key: str) -> Any:
        name = key_split(key)
        prefix = self._scheduler.task_prefixes.get(name) or TaskPrefix(name)
        return SimpleNamespace(prefix=prefix)


def _asks_for_gpu(resources: Mapping[str, float]) -> bool:
    return bool(resources.get(GPU_RESOURCE))
