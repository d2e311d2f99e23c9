"""Answers to Celery's commands for workers, from what the scheduler knows of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from girder_dask._version import __version__
from girder_dask.protocol.celery_message import DEFAULT_QUEUE, LOCAL_QUEUE, QUEUE_RESOURCE_PREFIX

__all__ = ["WorkerAnswers"]

# Celery waits one second for an answer.
_TIMEOUT_S = 0.5
# Status pages send five commands at once: one question to the scheduler answers all of them.
_MAX_AGE_S = 0.5

# A worker that stands for the queue in Girder, which is durable.
_DURABLE = "dask@girder"


class WorkerAnswers:
    """The answers of workers, from what the scheduler said of them a moment ago.

    Parameters
    ----------
    ask
        Returns the workers within some seconds, none if the scheduler does not answer.
    clock
        Returns the time in seconds.
    """

    def __init__(
        self,
        ask: Callable[[float], Sequence[Mapping[str, Any]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._last: tuple[float, Sequence[Mapping[str, Any]]] = (-math.inf, ())

    def to(self, method: str) -> dict[str, Any]:
        """Return the answers of all workers to a command, by the names of the workers.

        A task for a queue that no worker serves waits in Girder. So ``local`` is always served:
        Girder asks for it before it sends such a task, and would remember "no" for an hour.
        """
        found = {f"dask@{worker['name']}": _answer(method, worker) for worker in self._workers()}
        if method in ("stats", "active_queues"):
            durable = {"nthreads": 0, "resources": {f"{QUEUE_RESOURCE_PREFIX}{LOCAL_QUEUE}": 1}}
            found[_DURABLE] = _answer(method, durable)
        return found

    def _workers(self) -> Sequence[Mapping[str, Any]]:
        """Return the workers of a moment ago, or ask for them. No answer counts as none."""
        told_at, workers = self._last
        if self._clock() - told_at > _MAX_AGE_S:
            workers = self._ask(_TIMEOUT_S)
            self._last = (self._clock(), workers)
        return workers


def _answer(method: str, worker: Mapping[str, Any]) -> Any:
    if method == "stats":
        return {"pool": {"max-concurrency": worker["nthreads"]}, "total": {}}
    if method == "ping":
        return {"ok": "pong"}
    if method == "report":
        return {"ok": f"girder_dask {__version__} on Dask"}
    if method == "active_queues":
        return [{"name": name} for name in _queues(worker["resources"])]
    if method in ("active", "reserved"):
        return [_task(job) for job in worker.get(method, ())]
    return []


def _queues(resources: Mapping[str, Any]) -> list[str]:
    """Return the queues of a worker: those that it names, or the default one."""
    named = [
        name.removeprefix(QUEUE_RESOURCE_PREFIX)
        for name in resources
        if name.startswith(QUEUE_RESOURCE_PREFIX)
    ]
    return named or [DEFAULT_QUEUE]


def _task(job: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": job["id"], "name": job["task"], "type": job["task"], "args": [], "kwargs": {}}
