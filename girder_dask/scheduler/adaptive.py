"""The number of workers that an adaptive cluster should have, with the jobs that wait counted in.

Dask derives it from the tasks that it has. It does not have the jobs that wait behind the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from types import SimpleNamespace
from typing import Any

from dask.utils import key_split
from distributed import Scheduler
from distributed.scheduler import TaskPrefix

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
        view: Any = _SchedulerView(self._scheduler, self._window)
        return type(self._scheduler).adaptive_target(view, target_duration)


class _SchedulerView:
    """A scheduler in whose queue the waiting jobs are too."""

    def __init__(self, scheduler: Scheduler, window: Window) -> None:
        self._scheduler = scheduler
        self.queued = _Queue(scheduler, window)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)


class _Queue:
    """The queued tasks of Dask, then those of waiting jobs, as far as the target looks at them."""

    def __init__(self, scheduler: Scheduler, window: Window) -> None:
        self._scheduler = scheduler
        self._window = window

    def __len__(self) -> int:
        return len(self._scheduler.queued) + self._window.waiting

    def __iter__(self) -> Iterator[Any]:
        return chain(self._scheduler.queued, map(self._task, self._window.all_waiting()))

    def _task(self, key: str) -> Any:
        name = key_split(key)
        prefix = self._scheduler.task_prefixes.get(name) or TaskPrefix(name)
        return SimpleNamespace(prefix=prefix)
