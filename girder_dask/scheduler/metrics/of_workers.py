"""Metrics about workers: how many the queue asks for, and when their certificates expire."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from distributed import Scheduler
from distributed.scheduler import WorkerState

from girder_dask.metrics import families
from girder_dask.scheduler.adaptive import AdaptiveTarget
from girder_dask.tls import EXPIRY_METRIC

__all__ = ["WorkerMetrics"]

_PREFIX = "girder_dask_scheduler"
_MAX_NAME = 100


class WorkerMetrics:
    """The metrics about the workers of a scheduler.

    Parameters
    ----------
    scheduler
        Dask's scheduler.
    target
        The number of workers that it asks for.
    """

    def __init__(self, scheduler: Scheduler, target: AdaptiveTarget) -> None:
        self._scheduler = scheduler
        self._target = target

    def families(self) -> Iterator[Any]:
        """Yield the families."""
        targets = self._target.targets()
        yield families.gauge(
            f"{_PREFIX}_wanted_workers",
            "Workers that the tasks and the waiting jobs ask for, by whether they offer a GPU.",
            {(str(has_gpu).lower(),): number for has_gpu, number in targets.items()},
            ["gpu"],
        )
        first = min(filter(None, map(_expiry, self._scheduler.workers.values())), default=None)
        if first is not None:
            expires, host, file = first
            yield families.gauge(
                f"{_PREFIX}_worker_certificate_expiry_timestamp_seconds",
                "When the certificate of a worker that expires first does so.",
                {(host, file): expires},
                ["host", "file"],
            )


def _expiry(worker: WorkerState) -> tuple[float, str, str] | None:
    """Return when a certificate of a worker expires, its host and its file, as the worker says."""
    match worker.metrics.get(EXPIRY_METRIC):
        case [str() as file, int() | float() as expires] if math.isfinite(expires):
            return float(expires), worker.host, file[:_MAX_NAME]
    return None
